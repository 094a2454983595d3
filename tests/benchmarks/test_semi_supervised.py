"""Rows of the few-label table: what each trains from, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import semi_supervised, table
from benchmarks.quality import TIMING


def test_every_row_starts_where_its_name_says(tmp_path: Path) -> None:
    kept = {"10 %, fine-tuned": {"run": "a/version_0"}}

    def row(name: str) -> tuple[str, list[str]]:
        return semi_supervised.arguments(name, "pre.ckpt", kept, tmp_path)

    assert row("1 %, fine-tuned") == (semi_supervised.TUNE["1"], ["--model.weights=pre.ckpt"])
    assert row("1 %, from scratch")[1] == ["--model.weights=random"]
    longer = ["--model.weights=random", "--trainer.max_epochs=90"]
    assert row("10 %, from scratch, 3x epochs") == (semi_supervised.TUNE["10"], longer)
    config, extra = row("10 %, distilled")
    assert config == semi_supervised.DISTIL
    teacher = tmp_path / "a/version_0/checkpoints/last.ckpt"
    assert extra == [f"--model.teacher_weights={teacher}", "--model.weights=pre.ckpt"]


def test_rows_that_stand_there_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, output = tmp_path / "runs", tmp_path / "result.json"
    asked: list[str] = []

    def fit(config: str, data: str, val_dir: str, folder: Path, extra: list[str]) -> Path:
        run = folder / "version_0"
        (run / "checkpoints").mkdir(parents=True)
        epochs = {"trainer": {"max_epochs": 3}, "seed_everything": 0}
        (run / "config.yaml").write_text(json.dumps(epochs))
        (run / "metrics.csv").write_text("epoch,val/top1\n0,0.2\n1,\n2,0.25\n")
        about = {"cpu_minutes": 1.5, "minutes": 2.0, "cpu": "a processor", "cores": 2}
        (run / TIMING).write_text(json.dumps({**about, "commit": "0" * 40, "extra": extra}))
        asked.append(config)
        return run

    monkeypatch.setattr(semi_supervised, "fit", fit)
    common = [f"--data={tmp_path}", "--pretrained=pre.ckpt", f"--runs={runs}", f"--output={output}"]
    semi_supervised.main([*common, "--only", "1 %, from scratch"])
    assert asked == ["simclr/" + semi_supervised.TUNE["1"]]
    semi_supervised.main(common)
    result = json.loads(output.read_text())
    assert list(result) == semi_supervised.ROWS
    assert len(asked) == len(semi_supervised.ROWS)
    text = table.semi_supervised_table(result)
    assert "| 10 %, distilled | **0.2500** | 3 | 1.5 | 0 |" in text
    assert text.endswith("- a processor, 2 cores")
