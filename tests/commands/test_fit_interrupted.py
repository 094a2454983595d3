"""A command that is killed or stopped at any point loses nothing that its checkpoint had."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from sslzoo.commands.run_directory import MetricsFile, read_rows
from tests.commands.command import arguments, run, start, weights

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
    """Ends the process in a hook at a step; what was not yet written is lost.

    Args:
        number: a signal that the process gets instead.
    """

    def __init__(self, hook: str = "", step: int = 0, number: int = 0) -> None:
        self.step, self.number = step, number
        if hook:
            setattr(self, hook, self._kill)

    def _kill(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step and self.number:
            signal.raise_signal(self.number)
        elif trainer.global_step == self.step:
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


MEASURED = ("train/samples_per_second", "train/memory_mb")


def written(out: Path) -> tuple[list[dict[str, Any]], Any]:
    """The metrics of a folder's only run but time and memory, and its final table."""
    version = out if (out / "metrics.csv").exists() else out / "version_0"
    assert version == out or list(out.iterdir()) == [version]
    rows = read_rows(version / "metrics.csv")
    known = [{name: cell for name, cell in row.items() if name not in MEASURED} for row in rows]
    rows = [{name: float(cell) for name, cell in row.items() if cell} for row in known]
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


@pytest.mark.parametrize(
    ("number", "hook", "step", "saved"),
    [
        (signal.SIGTERM, "on_train_batch_end", 3, 3),
        (signal.SIGINT, "on_train_epoch_end", 2, 3),  # behind the next step
        (signal.SIGINT, "on_train_end", 4, None),
        (signal.SIGTERM, "setup", 0, None),
    ],
)
def test_signal_saves_and_exits_with_its_code(
    number: signal.Signals,
    hook: str,
    step: int,
    saved: int | None,
    whole: dict[str, Path],
    folder: Path,
    tmp_path: Path,
) -> None:
    out, before = tmp_path / "run", [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    args = [*arguments(folder, out, "simclr"), *SMALL, "--trainer.max_epochs=2"]
    ends = {"on_train_end": "the last checkpoint is {}", "setup": "no checkpoint"}
    said = ends.get(hook, "saved {}")
    last = out / "version_0" / "checkpoints" / "last.ckpt"
    own = {"hook": hook, "step": step, "number": int(number)}
    dies = [f"--trainer.callbacks+={__name__}.KillAt"]
    dies += [f"--trainer.callbacks.{name}={value}" for name, value in own.items()]
    done = run([*args, *dies], tmp_path, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert f"stopped by {number.name}: {said.format(last)}" in done.stderr
    assert out.exists() == (hook != "setup"), "a failed start leaves nothing"
    if saved is not None:
        assert torch.load(last, weights_only=True)["global_step"] == saved
    if hook != "setup":
        assert not list(last.parent.glob("*.part*"))
        run([*args, f"--ckpt_path={last}"], tmp_path)
        assert written(out) == written(whole["epochs=2"])


class FullDisk(Callback):
    """No file may grow beyond some bytes from a hook at a step on."""

    def __init__(self, hook: str = "setup", step: int = 0, size: int = 0) -> None:
        self.step, self.size = step, size
        setattr(self, hook, self._fill)

    def _fill(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("hook", "step", "size"), [("on_train_epoch_end", 4, 10_000), ("setup", 0, 100)]
)
def test_full_disk_ends_in_a_sentence_and_leaves_the_last_checkpoint_whole(
    hook: str, step: int, size: int, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    args = [*arguments(folder, out, "simclr"), *SMALL, "--trainer.max_epochs=3"]
    args += [f"--trainer.callbacks+={__name__}.FullDisk", f"--trainer.callbacks.hook={hook}"]
    args += [f"--trainer.callbacks.step={step}", f"--trainer.callbacks.size={size}"]
    try:
        done = run(args, tmp_path, check=False)
    finally:
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, infinite)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert said.startswith("sslzoo: "), done.stderr
    assert ": File too large" in said
    assert "Traceback" not in done.stderr
    if hook == "setup":
        assert not out.exists()
        return
    last = out / "version_0" / "checkpoints" / "last.ckpt"
    assert said.endswith(f"; the last checkpoint is {last}")
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert {path.suffix for path in last.parent.iterdir()} == {".ckpt"}, "no part of a file is left"
    steps = [row["step"] for row in read_rows(out / "version_0" / "metrics.csv")]
    assert steps == ["0", "1", "2", "3"]


def test_metrics_file_has_whole_rows_on_a_full_disk(tmp_path: Path) -> None:
    file = MetricsFile(str(tmp_path), [{"step": 0, "a": 0.123}])
    before = (tmp_path / "metrics.csv").read_bytes()
    for names in ("a", "b"):  # a row more, and a column more
        file.log_metrics({names: 1 / 3}, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, resource.RLIM_INFINITY))
        try:
            with pytest.raises(OSError, match="too large"):
                file.save()
        finally:
            infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, infinite)
        assert (tmp_path / "metrics.csv").read_bytes() == before
    file.save()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == ["0", "1", "1"]


SLOWLY = """
import os, time
from pathlib import Path
from lightning import Callback


class Slowly(Callback):
    def on_train_batch_end(self, trainer, *args):
        Path(f"{os.getpid()}.{trainer.global_step}").touch()
        time.sleep(0.5)
"""


def test_stopped_runs_of_one_instant_share_nothing_and_resume_exactly(
    whole: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """Two processes: one is stopped behind its step, one is killed within its step."""
    out = tmp_path / "run"
    (tmp_path / "slowly.py").write_text(SLOWLY)
    args = [*arguments(folder, out, "simclr"), *SMALL, *SAVES_EVERY_STEP, "--trainer.max_epochs=2"]
    numbers = (signal.SIGTERM, signal.SIGKILL)
    files = [tmp_path / f"said_{number}" for number in numbers]
    slowly = [*args, "--trainer.callbacks+=slowly.Slowly"]
    processes = [start(slowly, tmp_path, file) for file in files]
    waiting, deadline = dict(zip(processes, numbers, strict=True)), time.monotonic() + 120
    while waiting and time.monotonic() < deadline:
        time.sleep(0.02)
        for process in [p for p in waiting if (tmp_path / f"{p.pid}.3").exists()]:
            os.kill(process.pid or 0, waiting.pop(process))
    for process, number, file in zip(processes, numbers, files, strict=True):
        process.join(60)
        said = file.read_text()
        assert process.exitcode == (143 if number == signal.SIGTERM else -9), said
        assert ("sslzoo: stopped by SIGTERM: saved " in said) == (number == signal.SIGTERM)
    assert {path.name for path in out.iterdir()} == {"version_0", "version_1"}
    wanted = weights(whole["epochs=2"] / "version_0/checkpoints/last.ckpt")
    for version in out.iterdir():
        path = version / "checkpoints" / "last.ckpt"
        assert torch.load(path, weights_only=True)["global_step"] < 4, "stopped before the end"
        run([*args, f"--ckpt_path={path}"], tmp_path)
        assert written(version) == written(whole["epochs=2"] / "version_0")
        got = weights(path)
        assert all(got[name].equal(wanted[name]) for name in wanted)
