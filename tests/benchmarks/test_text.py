"""The text benchmark: a run of the command on a few pairs, and the table of its result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import table, text
from tests.data.test_text import sentences

pytest.importorskip("tokenizers")


def test_a_run_becomes_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "stsb"
    folder.mkdir()
    some = sentences()
    lines = [f"{a},{some[i - 1]},{i % 6}" for i, a in enumerate(some)]
    for part in ("train", "dev", "test"):
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
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
