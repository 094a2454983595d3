"""The command as a process of its own, with the arguments of a small run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
COMMAND = [str(Path(sys.executable).parent / "sslzoo")]


def arguments(folder: Path, out: Path, method: str = "byol") -> list[str]:
    sizes = {
        "byol": ["projector.init_args.hidden_dim=16", "predictor.init_args.hidden_dim=16"],
        "instdisc": ["bank_size=60", "num_negatives=8"],
        "simclr": [],
    }[method]
    return [
        *["fit", "--config", f"{method}/folder_small_10ep"],
        f"--data.root={folder}",
        "--data.batch_size=12",
        "--trainer.precision=32-true",
        f"--trainer.default_root_dir={out}",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        *[f"--model.init_args.{size}" for size in sizes],
    ]


def run(args: list[str], cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *args], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def checkpoint(run_folder: Path) -> Path:
    return next((run_folder / "checkpoints").glob("*.ckpt"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]
