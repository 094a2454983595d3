"""A command that is killed or stopped at any point loses nothing that its checkpoint had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from sslzoo.commands.run_directory import read_rows
from tests.commands.command import COMMAND, ENVIRONMENT, arguments, run, weights

SAVES_EVERY_STEP = [
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.save_last=true",
    "--trainer.callbacks.every_n_train_steps=1",
]


SMALL = [  # two steps an epoch
    *["--model.init_args.backbone=tests.toys.Pooled", "--data.batch_size=30"],
    "--model.init_args.backbone.init_args.num_features=256",
    *["--trainer.limit_val_batches=0", "--trainer.callbacks+=sslzoo.callbacks.FinalTable"],
]


class Killed(BaseException):
    """What ends a process without a farewell."""


class KillAt(Callback):
    """Ends the process in a hook at a step; what was not yet written is lost."""

    def __init__(self, hook: str = "", step: int = 0) -> None:
        self.step = step
        if hook:
            setattr(self, hook, self._kill)

    def _kill(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.loggers[0].experiment.metrics = []  # type: ignore[attr-defined]
            raise Killed


def fit(folder: Path, out: Path, *extra: str, kill: tuple[str, int] | None = None) -> None:
    """One command with an evaluation in each epoch and one in the end."""
    args = [*arguments(folder, out, "simclr"), *SMALL]
    if kill is None:
        run([*args, *extra], out.parent)
        return
    dies = [f"--trainer.callbacks+={__name__}.KillAt", f"--trainer.callbacks.hook={kill[0]}"]
    with pytest.raises(Killed):
        run([*args, *dies, f"--trainer.callbacks.step={kill[1]}", *extra], out.parent)


def written(out: Path) -> tuple[list[dict[str, Any]], Any]:
    """The metrics of the only run of a folder, without empty cells, and its final table."""
    version = out if (out / "metrics.csv").exists() else out / "version_0"
    assert version == out or list(out.iterdir()) == [version]
    rows = read_rows(version / "metrics.csv")
    rows = [{name: float(cell) for name, cell in row.items() if cell} for row in rows]
    return rows, json.loads((version / "final_table.json").read_text())["scores"]


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of unbroken runs by their length."""
    outs = {name: tmp_path_factory.mktemp("whole") / "run" for name in ("epochs=2", "steps=3")}
    for name, out in outs.items():
        fit(folder, out, f"--trainer.max_{name}")
    return outs


@pytest.mark.parametrize(
    ("length", "step", "hook", "extra"),
    [
        ("epochs=2", 4, "on_train_end", []),
        ("steps=3", 3, "on_train_epoch_end", []),  # resumes from the end of the first epoch
        ("steps=3", 3, "on_train_epoch_end", SAVES_EVERY_STEP),
    ],
)
def test_killed_in_the_last_evaluation_and_resumed_writes_what_the_unbroken_run_writes(
    length: str,
    step: int,
    hook: str,
    extra: list[str],
    whole: dict[str, Path],
    folder: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    extra = [f"--trainer.max_{length}", *extra]
    fit(folder, out, *extra, kill=(hook, step))
    fit(folder, out, *extra, "--ckpt_path=last")
    assert written(out) == written(whole[length])
    ends = [weights(path / "version_0/checkpoints/last.ckpt") for path in (out, whole[length])]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


SLOWLY = """
import time
from lightning import Callback


class Slowly(Callback):
    def on_train_batch_end(self, *args):
        time.sleep(0.3)
"""


def test_signals_save_and_runs_of_one_instant_share_nothing(
    whole: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (tmp_path / "slowly.py").write_text(SLOWLY)
    args = [*arguments(folder, out, "simclr"), *SMALL, "--trainer.max_epochs=2"]
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    starts = {"cwd": tmp_path, "env": environment, "stderr": subprocess.PIPE, "text": True}
    command = [*COMMAND, *args, "--trainer.callbacks+=slowly.Slowly"]
    processes = [subprocess.Popen(command, **starts) for _ in range(2)]  # type: ignore[call-overload]
    saved = [out / f"version_{i}" / "checkpoints" / "last.ckpt" for i in range(2)]
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in saved) and time.monotonic() < deadline:
        time.sleep(0.02)
    numbers = (signal.SIGTERM, signal.SIGINT)
    for process, number in zip(processes, numbers, strict=True):
        process.send_signal(number)
    named = []
    for process, number in zip(processes, numbers, strict=True):
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number, said
        (line,) = (line for line in said.splitlines() if "stopped by" in line)
        assert line.startswith(f"sslzoo: stopped by {number.name}: saved "), said
        named.append(Path(line.rpartition(" ")[2]))
    assert sorted(named) == saved
    for path in saved:
        step = torch.load(path, weights_only=True)["global_step"]
        assert step < 4, "stopped before the end"
        run([*args, f"--ckpt_path={path}"], tmp_path)
        assert written(path.parents[1]) == written(whole["epochs=2"] / "version_0")
        got, wanted = weights(path), weights(whole["epochs=2"] / "version_0/checkpoints/last.ckpt")
        assert all(got[name].equal(wanted[name]) for name in wanted)
