"""The module, the data and the YAML of docs/trainer.md run as a user copies them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.commands.command import run

PAGE = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text()


def test_knn_and_probe_evaluate_an_own_module_from_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, name in (("python", "mine.py"), ("yaml", "mine.yaml")):
        (block,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
        (tmp_path / name).write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    done = run(["fit", "--config", "mine.yaml", "--trainer.accelerator=cpu"], tmp_path)
    lines = done.stdout.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 2, "one line per epoch, since the output is no terminal"
    for word in ("epoch 2/2", "loss ", "knn_top1_k5_t0.07 ", "probe_top1 ", "samples/s", " left"):
        assert word in epochs[1]
    run_folder = Path("runs/mine/version_0")
    at = lines.index(f"run: {run_folder}")
    assert lines[at + 1] == f"checkpoint: {run_folder}/checkpoints/last.ckpt"
    assert re.match(r"metrics: train/loss [\d.e-]+, val/knn_top1_k5_t0.07 ", lines[at + 2])
    assert lines[at + 3] == "next:"
    rows = (tmp_path / run_folder / "metrics.csv").read_text()
    for name in ("train/lr", "train/samples_per_second", "train/memory_mb", "train/loss"):
        assert name in rows.splitlines()[0], "4 steps per epoch, fewer than log_every_n_steps"
    text = (tmp_path / run_folder / "config.yaml").read_text()
    assert re.search(r"precision: (32-true|bf16-mixed)\n", text), "resolved"
    assert all(re.match("sslzoo (report|fit) ", line) for line in lines[at + 4 :])
    assert len(lines) in (at + 5, at + 6)
