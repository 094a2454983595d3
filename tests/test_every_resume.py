"""The battery of resumes: a run killed at any point and resumed is the run that was not.

Every method, with every callback that it brings, by a real Trainer and our own loaders. Compared
is all that a checkpoint holds: weights, memory, teacher, optimizer, schedule, clock, generators,
callbacks and the place in the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.callbacks import OnlineProbe
from sslzoo.data.datamodule import SampleDataModule, SampleSet, Sets
from sslzoo.data.loader import BatchSource
from sslzoo.data.sampler import KeyedSampler
from sslzoo.methods import InstDisc, SimCLR
from sslzoo.optim import WarmupCosine
from sslzoo.trainable import Trainable
from tests.toys import build, data_like, every_trainable, one_of_each_kind, rows

SAMPLES, BATCH, EPOCHS = 48, 16, 3  # every bank of the docstrings has 48 rows
EPOCH_STEPS = SAMPLES // BATCH
STEPS = EPOCHS * EPOCH_STEPS
NUM_CLASSES = 3
CLASSES = one_of_each_kind(every_trainable())

pytestmark = [
    # Lightning reads a deprecated attribute of torch's itself.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # Lightning 2.6 looks for ModelCheckpoint alone.
    pytest.mark.filterwarnings("ignore:.*ckpt_path.* without a ModelCheckpoint"),
]


class Samples(SampleSet):
    """The rows of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.labels = batch, batch.label

    def __len__(self) -> int:
        return len(self.batch.index)

    def __getitems__(self, index: list[int]) -> Batch:
        return rows(self.batch, torch.tensor(index))

    def subset(self, rows_kept: Tensor) -> Samples:
        raise NotImplementedError


class Data(SampleDataModule):
    """Samples whose views are ready."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(BATCH, BATCH, 0, 0, 1.0, "query")
        self.batch = batch

    def read(self) -> Sets:
        samples = Samples(self.batch)
        return Sets(samples, samples, NUM_CLASSES)

    def train_source(self, sampler: KeyedSampler) -> BatchSource:
        return self.sets.train

    def eval_source(self, samples: Any) -> BatchSource:
        return samples

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        return batch

    def eval_views(self, batch: Batch) -> Batch:
        return batch

    def workers(self, samples: Any) -> int:
        return 0


class Killed(BaseException):
    """What ends a process, and no `except Exception` sees."""


# Behind the last batch of an epoch, or before the first of the next: the same place.
PLACE = {
    f"/{where}/{part}"
    for where in ("Data/train_loader", "loops/fit_loop/state_dict/combined_loader/0")
    for part in ("epoch", "position")
}


class Monitor(Callback):
    """Writes down the metric of each evaluation with its step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metric = trainer.callback_metrics.get("val/probe_top1")
        if metric is not None:
            self.seen.append((trainer.global_step, metric.item()))


class Saves(Checkpoint):
    """Saves at every point where Lightning's ModelCheckpoint can; behind all other callbacks.

    Args:
        folder: of `batch=<step>.ckpt`, `val=<step>.ckpt` and `epoch=<step>.ckpt`.
        kill_at: the step after which the process dies, as soon as it is saved.
    """

    def __init__(self, folder: Path, kill_at: int | None = None) -> None:
        self.folder, self.kill_at = folder, kill_at
        self.epochs: list[tuple[str, int]] = []  # which began and ended

    def _save(self, trainer: Trainer, point: str) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{point}={trainer.global_step}.ckpt")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append(("start", trainer.current_epoch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._save(trainer, "batch")
        if trainer.global_step == self.kill_at:
            raise Killed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "val")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append(("end", trainer.current_epoch))
        self._save(trainer, "epoch")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "end")


def toy(cls: type[Trainable]) -> tuple[Any, Data]:
    torch.manual_seed(0)
    method, batch = build(cls)
    method._optimizer = partial(torch.optim.AdamW, lr=1e-3)
    method._schedule = WarmupCosine(warmup_epochs=1)
    if cls is InstDisc:
        method.refresh_every_n_epochs = 2  # the one part that works at the end of some epochs
    return method, Data(data_like(batch, SAMPLES, NUM_CLASSES))


def train(
    cls: type[Trainable],
    folder: Path,
    resume: Path | None = None,
    kill_at: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[tuple[str, int]]:
    """Train the toy into `folder`; which epochs began and ended."""
    folder.mkdir(exist_ok=True)
    method, data = toy(cls)
    saves = Saves(folder, kill_at)
    trainer = Trainer(
        max_epochs=EPOCHS,
        precision="64-true",
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[OnlineProbe(every_n_epochs=2), *callbacks, saves],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    with contextlib.suppress(Killed):
        trainer.fit(method, datamodule=data, ckpt_path=resume, weights_only=True)
    return saves.epochs


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a checkpoint by its full name."""
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from flat(part, f"{name}/{key}")
    elif "val_loop" not in name:  # how many validations there were in this process
        yield name, value


def differences(one: Path, other: Path) -> list[str]:
    """Names of what two checkpoints do not have alike, bit for bit."""
    # These files are our own, and the reader of foreign ones takes most of this test's time.
    a, b = (dict(flat(torch.load(path, weights_only=False))) for path in (one, other))
    alike = {
        name
        for name in a.keys() & b.keys()
        if (torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name])
    }
    return sorted((a.keys() | b.keys()) - alike)


@CLASSES
def test_killed_after_every_step_of_an_epoch_equals_the_unbroken_run(
    cls: type[Trainable], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    epochs = train(cls, whole)
    last, seen = None, []
    for step in range(1, EPOCH_STEPS + 1):
        seen += train(cls, killed, last, kill_at=step)
        last = killed / f"batch={step}.ckpt"
        assert differences(whole / last.name, last) == [], f"step {step}"
    seen += train(cls, killed, last)
    assert seen == epochs, "each epoch begins and ends once"
    for path in (*killed.glob("epoch=*.ckpt"), killed / f"end={STEPS}.ckpt"):
        assert not set(differences(whole / path.name, path)) - PLACE, path.name


def test_every_checkpoint_resumes_exactly(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(InstDisc, whole)
    points = [f"batch={step}" for step in range(1, STEPS + 1)]
    points += [f"{kind}={step}" for kind in ("val", "epoch") for step in range(3, STEPS + 1, 3)]
    for point in points:
        end = resumed / f"end={STEPS}.ckpt"
        end.unlink(missing_ok=True)
        train(InstDisc, resumed, whole / f"{point}.ckpt")
        if point != f"epoch={STEPS}":  # a finished run: Lightning does nothing at all
            assert not set(differences(whole / end.name, end)) - PLACE, point


def test_what_an_epoch_end_logs_is_not_lost(tmp_path: Path) -> None:
    """A monitor sees the metric of an epoch from whose last batch the run resumes."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    wanted, got = Monitor(), Monitor()
    train(InstDisc, whole, callbacks=[wanted])
    train(InstDisc, resumed, whole / "batch=6.ckpt", callbacks=[got])
    assert len(wanted.seen) == EPOCHS - 1
    assert got.seen == wanted.seen[-2:]


def test_dropout_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keyed draws need no generator; torch's dropout does."""

    original = toy

    def noisy(cls: type[Trainable]) -> tuple[Any, Data]:
        method, data = original(cls)
        method.projector = torch.nn.Sequential(torch.nn.Dropout(0.5), method.projector)
        return method, data

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(f"{__name__}.toy", noisy)
        train(SimCLR, whole)
        train(SimCLR, killed, kill_at=2)
        train(SimCLR, killed, killed / "batch=2.ckpt")
    assert differences(whole / f"end={STEPS}.ckpt", killed / f"end={STEPS}.ckpt") == []
