"""MAE's judgment: what the probes look at, where fine-tuning starts, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import masked, table
from benchmarks.quality import TIMING
from sslzoo.backbones import small_vit
from sslzoo.batch import Batch
from sslzoo.eval.linear import linear_probe
from sslzoo.eval.loaders import EvalLoaders


def test_each_probe_sees_its_own_pool() -> None:
    vit = small_vit(8, 4, width=16, depth=1, num_heads=2).eval()
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(60, 3, 8, 8, generator=generator), torch.arange(60) % 3
    images += 0.1 * labels.view(-1, 1, 1, 1)

    def batches(rows: slice) -> list[Batch]:
        return [Batch([images[rows]], torch.arange(60)[rows], labels[rows])]

    bank, query = batches(slice(0, 40)), batches(slice(40, 60))
    got = masked.probes(vit, EvalLoaders(bank, query, lambda batch: batch, 3, sharded=False))
    with torch.no_grad():
        tokens = vit.forward_tokens(images)
    for name, x in {"class token": tokens[:, 0], "mean of patches": tokens[:, 1:].mean(1)}.items():
        known, asked = (x[:40], labels[:40]), (x[40:], labels[40:])
        assert got[name] == linear_probe(*known, *asked, 3, masked.L2, max_steps=300)
    assert list(got) == ["class token", "mean of patches"]


def test_rows_start_where_their_names_say_and_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    about = {"cpu_minutes": 1.5, "cpu": "a processor", "cores": 2, "commit": "0" * 40}

    def fit(config: str, data: str, val_dir: str, folder: Path, extra: list[str]) -> Path:
        run = folder / "version_0"
        run.mkdir(parents=True)
        given = {"trainer": {"max_epochs": 20}, "seed_everything": 0}
        (run / "config.yaml").write_text(json.dumps(given))
        value = 0.2 if "--model.weights=random" in extra else 0.3
        (run / "metrics.csv").write_text(f"epoch,val/top1\n0,0.1\n19,{value}\n")
        (run / TIMING).write_text(json.dumps({**about, "extra": extra}))
        asked.append(extra)
        return run

    accuracy = {
        "trained": {"class token": 0.5, "mean of patches": 0.55},
        "untrained": {"class token": 0.3, "mean of patches": 0.35},
        "pixels": {"pixels": 0.4},
    }
    monkeypatch.setattr(masked, "fit", fit)
    monkeypatch.setattr(masked, "probe", lambda run: {"accuracy": accuracy, **about})
    output, run = tmp_path / "result.json", tmp_path / "run"
    common = [f"--data={tmp_path}", f"--run={run}", f"--runs={tmp_path}", f"--output={output}"]
    masked.main([*common, "--only", "from scratch"])
    assert "--model.weights=random" in asked[0]
    masked.main([*common, "--", "--trainer.precision=32-true"])
    assert len(asked) == 2
    assert f"--model.weights={run / 'checkpoints/last.ckpt'}" in asked[1]
    assert asked[1][-1] == "--trainer.precision=32-true"
    result = json.loads(output.read_text())
    assert list(result) == masked.ROWS
    text = table.masked_table(result)
    assert "| linear probe, mean of patches | **0.5500** | 0.3500 | 0.4000 | - |" in text
    assert "| fine-tuned, 10 % of labels | **0.3000** | 0.2000 | - | 20 epochs, 1.5 CPU" in text
    assert table.masked_table({}) == table.NOT_RUN
