"""Two processes and one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from tests.commands.command import arguments, checkpoint, run, run_process, weights


def test_two_processes_equal_one(folder: Path, tmp_path: Path) -> None:
    ends = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        options = [f"--trainer.devices={devices}", "--trainer.accelerator=cpu"]
        # In float32 a rounding error that carries one activation over ReLU's kink grows a
        # hundredfold a step on images this few and this small, on one process as on two.
        options.append("--trainer.precision=64-true")
        if devices > 1:
            options.append("--trainer.strategy=ddp")
        start = run_process if devices > 1 else run  # Lightning starts the other rank
        start([*arguments(folder, out), *options, "--trainer.max_epochs=2"], tmp_path)
        with (out / "version_0" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
        knn = [row["val/knn_top1_k20_t0.07"] for row in rows if row["val/knn_top1_k20_t0.07"]]
        ends.append((losses, knn, weights(checkpoint(out / "version_0"))))
    (losses, knn, one), (losses2, knn2, two) = ends
    assert len(losses) == 10
    assert losses2 == pytest.approx(losses, rel=1e-9)
    assert knn == knn2
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-9, msg=name)
