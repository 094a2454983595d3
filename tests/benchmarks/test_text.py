"""The text benchmark: a run of the command on a few pairs, and the table of its result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import table, text, text_with_labels
from tests.data.text.test_datamodule import sentences

pytest.importorskip("tokenizers")


def pairs(folder: Path) -> Path:
    """Three files of a few pairs."""
    folder.mkdir()
    some = sentences()
    lines = [f"{a},{some[i - 1]},{i % 6}" for i, a in enumerate(some)]
    for part in ("train", "dev", "test"):
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_a_run_becomes_a_row(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "stsb")
    output = tmp_path / "text.json"
    text.main(
        [
            "clear",
            "--config=clear/stsb_small_40ep",
            f"--data={folder}",
            f"--runs={tmp_path / 'runs'}",
            f"--output={output}",
            f"--weights={tmp_path}",
            "--rounds=1",
            "--",
            "--trainer.max_epochs=1",
            "--data.batch_size=4",
            "--trainer.accelerator=cpu",
        ]
    )
    result = json.loads(output.read_text())
    assert result["clear"]["epochs"] == 1
    assert set(result["clear"]["scores"]["words"]) == {"spearman_dev", "spearman_test"}
    assert all(value > 0 for key, value in result["clear"].items() if "per_cpu_second" in key)
    shown = table.text_table(result)
    assert "| clear | 1 |" in shown
    assert "`configs/clear/stsb_small_40ep.yaml`" in shown


def test_labels_are_learned(tmp_path: Path) -> None:
    output = tmp_path / "labels.json"
    asked = ["--epochs=8", "--pairs=6", "--rate=0.005", f"--output={output}"]
    text_with_labels.main([f"--data={pairs(tmp_path / 'stsb')}", *asked])
    result = json.loads(output.read_text())
    before, best = result["every_epoch"][0], result["scores"]
    assert best["spearman_dev"] > before["spearman_dev"] + 0.3  # dev is train here
    assert "the best on dev" in table.labels_note(result)
