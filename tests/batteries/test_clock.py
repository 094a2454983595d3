"""The clock of every method: it counts the steps of the optimizer that trains, and of no other.

Each way of ending a run and of starting another is tried: what a schedule is asked for, at every
step, must be that of a fresh run of the right length.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from torch.utils.data import DataLoader, IterableDataset

from sslzoo.batch import Batch
from sslzoo.callbacks import EMA
from sslzoo.methods import BYOL, DINO, IBOT, DINOv2, SimCLR
from sslzoo.optim import CosineSchedule, LinearSchedule, RunLength, WarmupCosine
from sslzoo.trainable import Trainable
from tests.test_every_method import BATCH, SAMPLES, TRAINABLES, Loader, batches, toy
from tests.test_every_method import fit as fit_quietly
from tests.toys import one_of_each_kind

COUNT_IN_EPOCHS = (DINO, DINOv2, IBOT)  # by a schedule of their own
PER_EPOCH = SAMPLES // BATCH


class Record(Callback):
    """Keeps the clock and the learning rate of every step."""

    def __init__(self) -> None:
        self.clocks: list[tuple[int, RunLength]] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        method: Any = pl_module
        self.clocks.append((method.step, method.run_length))
        self.rates.append(optimizer.param_groups[0]["lr"])


def train(method: Trainable, data: Any, ckpt_path: Any = None, **options: Any) -> Record:
    """Fit, and return what each step saw."""
    record = Record()
    run = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        callbacks=[*options.pop("callbacks", []), record],
        **options,
    )
    if isinstance(data, list):
        fit_quietly(run, method, data, ckpt_path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.fit(method, data, ckpt_path=ckpt_path, weights_only=True)
    method.last_trainer = run
    return record


def fresh(steps: int, per_epoch: int = PER_EPOCH, total: int | None = None) -> list[Any]:
    return [(step, RunLength(total or steps, per_epoch)) for step in range(steps)]


def teacher_parameters(method: Any) -> list[torch.nn.Parameter]:
    pairs = method.teacher_pairs() if hasattr(method, "teacher_pairs") else []
    return [p for _, teacher in pairs for p in teacher.parameters()]


class Endless(IterableDataset):
    """Batches without a length."""

    def __init__(self, content: list[Batch]) -> None:
        self.content = content

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.content)


def endless(content: list[Batch]) -> DataLoader:
    return DataLoader(Endless(content), batch_size=None)


@one_of_each_kind(TRAINABLES)
def test_every_fit_starts_afresh(cls: type[Trainable], tmp_path: Path) -> None:
    method, data = toy(cls)
    content = batches(data, BATCH, 0, 1)
    first = train(method, content, max_epochs=1)
    assert first.clocks == fresh(PER_EPOCH)
    method.last_trainer.save_checkpoint(tmp_path / "one.ckpt")
    before = [p.clone() for p in teacher_parameters(method)]
    again = train(method, content, max_steps=2)
    assert again.clocks == fresh(2)
    assert again.rates == first.rates[:2]
    moved = [
        not torch.equal(*pair) for pair in zip(before, teacher_parameters(method), strict=True)
    ]
    assert any(moved) or not moved, "the teacher stands still in a second fit"

    resumed = train(method, content, tmp_path / "one.ckpt", max_epochs=2)
    length = RunLength(PER_EPOCH, PER_EPOCH)
    assert resumed.clocks == [(PER_EPOCH + k, length) for k in range(PER_EPOCH)]

    other, _ = toy(cls)
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    other.on_load_checkpoint(saved)
    other.load_state_dict(saved["state_dict"])
    assert train(other, content, max_epochs=1).clocks == fresh(PER_EPOCH)


@one_of_each_kind(TRAINABLES)
def test_a_subclass_with_its_own_optimizer_ticks(cls: type[Trainable]) -> None:
    class Own(cls):  # type: ignore[misc, valid-type]
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    method, data = toy(cls)
    method.__class__ = Own
    record = train(method, batches(data, BATCH, 0, 1), max_epochs=2)
    assert record.clocks == fresh(2 * PER_EPOCH)
    assert method.step == 2 * PER_EPOCH


@one_of_each_kind(TRAINABLES)
def test_a_loader_without_length_needs_max_steps(cls: type[Trainable]) -> None:
    method, data = toy(cls)
    method._schedule = WarmupCosine(warmup_fraction=0.5)
    content = batches(data, BATCH, 0, 1)
    if cls in COUNT_IN_EPOCHS:
        with pytest.raises(ValueError, match=r"trainer.limit_train_batches must be the number"):
            train(method, endless(content), max_steps=2)
        assert method.step == 0
    else:
        assert train(method, endless(content), max_steps=2).clocks == fresh(2, per_epoch=0)
    with pytest.raises(ValueError, match=r"trainer.max_steps, or limit_train_batches as a number"):
        train(method, endless(content), max_epochs=2)
    method, _ = toy(cls)
    assert train(method, endless(content), max_epochs=1, limit_train_batches=2).clocks == fresh(
        2, 2
    )


def told(value: Any) -> str:
    """A test's name, the same in every process."""
    return ", ".join(value) if isinstance(value, dict) else str(value)


def simclr() -> tuple[Any, list[Batch]]:
    method, data = toy(SimCLR)
    return method, batches(data, BATCH, 0, 1)


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"max_epochs": 2}, (6, 3)),
        ({"max_steps": 4}, (4, 3)),
        ({"max_steps": 4, "max_epochs": -1}, (4, 3)),
        ({"max_steps": 4, "max_epochs": 1}, (3, 3)),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, (4, 2)),
        ({"max_epochs": 2, "limit_train_batches": 1}, (2, 1)),
        ({"max_epochs": 2, "limit_train_batches": 0.7}, (4, 2)),
        ({"max_epochs": 2, "overfit_batches": 1}, (2, 1)),
        ({"fast_dev_run": True}, (1, 1)),
        ({"max_epochs": 2, "max_time": "00:01:00:00"}, (6, 3)),
        ({"max_epochs": 2, "callbacks": [GradientAccumulationScheduler({0: 2})]}, (4, 2)),
        ({"max_epochs": 2, "callbacks": [GradientAccumulationScheduler({0: 2, 2: 1})]}, (4, 2)),
        ({"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}, (9, 3)),
    ],
    ids=told,
)
def test_the_run_length_is_what_the_trainer_does(
    options: dict[str, Any], length: tuple[int, int]
) -> None:
    method, content = simclr()
    record = train(method, content, **copy.deepcopy(options))
    assert record.clocks == fresh(length[0], length[1])


def test_no_training_at_all_is_skipped_as_lightning_does() -> None:
    method, content = simclr()
    assert train(method, content, max_epochs=2, limit_train_batches=0).clocks == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_epochs": -1}, "trainer.max_epochs or max_steps must be set"),
        ({"max_time": "00:00:01:00"}, "trainer.max_epochs or max_steps must be set"),
        (
            {"max_epochs": 2, "callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]},
            r"GradientAccumulationScheduler must keep one number .* got \[1, 2\]",
        ),
    ],
    ids=told,
)
def test_a_run_without_a_length_is_refused(options: dict[str, Any], error: str) -> None:
    method, content = simclr()
    with pytest.raises(ValueError, match=error):
        train(method, content, **copy.deepcopy(options))
    assert method.step == 0


def test_epochs_of_unknown_length_are_refused_before_the_first_step() -> None:
    method, content = simclr()
    error = "trainer.limit_train_batches must be the number of batches per epoch"
    method._schedule = WarmupCosine(warmup_epochs=1)
    with pytest.raises(ValueError, match=error):
        train(method, endless(content), max_steps=2)
    method, data = toy(BYOL)
    method._schedule = None
    content = batches(data, BATCH, 0, 1)
    ema = EMA(LinearSchedule(0.9, 1.0, epochs=2), "after_step")
    method.configure_callbacks = lambda: [ema]
    with pytest.raises(ValueError, match=error):
        train(method, endless(content), max_steps=2)
    assert method.step == 0


class Sized(LightningDataModule):
    """A data module whose batch size can be searched."""

    def __init__(self, data: Batch) -> None:
        super().__init__()
        self.data, self.batch_size = data, 2

    def train_dataloader(self) -> Any:
        return Loader(batches(self.data, self.batch_size, 0, 1))

    val_dataloader = train_dataloader


def test_the_batch_size_finder_leaves_the_right_length() -> None:
    method, data = toy(SimCLR)
    finder = BatchSizeFinder(steps_per_trial=1, init_val=6, max_trials=2)
    record = train(method, Sized(data), max_epochs=2, callbacks=[finder])
    assert record.clocks == fresh(2 * PER_EPOCH)  # 12 samples per batch
    method, _ = toy(SimCLR)
    assert record.rates == train(method, batches(data, 12, 0, 1), max_epochs=2).rates


def test_the_rate_finder_leaves_the_clock(tmp_path: Path) -> None:
    method, content = simclr()
    method.lr = 0.05
    finder = LearningRateFinder(num_training_steps=4, attr_name="lr", min_lr=1e-4, max_lr=1e-3)
    record = train(method, content, max_epochs=2, callbacks=[finder], default_root_dir=tmp_path)
    assert record.clocks == fresh(2 * PER_EPOCH)


def test_weight_averaging_adds_no_step() -> None:
    method, content = simclr()
    method._schedule = None  # it brings its own
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    record = train(method, content, max_epochs=2, callbacks=[averaging])
    assert record.clocks[: 2 * PER_EPOCH] == fresh(2 * PER_EPOCH)


def test_a_plain_loop_resumes_with_its_optimizer() -> None:
    method, content = simclr()
    method.run_length = RunLength(6, 3)
    optimizer = method.configure_optimizers()
    for batch in content[:2]:
        sum(method.losses(batch).values()).backward()
        optimizer.step()
    saved = copy.deepcopy((method.state_dict(), optimizer.state_dict()))
    other, _ = simclr()
    restored = other.configure_optimizers()
    other.load_state_dict(saved[0])
    restored.load_state_dict(saved[1])
    assert (other.step, other.run_length) == (2, RunLength(6, 3))
    restored.step()
    assert (other.step, method.step) == (3, 2)
    assert other.configure_optimizers() is not restored
    assert other.step == 0


def test_a_second_optimizer_is_not_counted() -> None:
    class Two(SimCLR):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            mine = torch.optim.SGD(self.backbone.parameters(), lr=0.1)
            return mine, torch.optim.SGD(self.projector.parameters(), lr=0.1)

        def training_step(self, batch: Batch, batch_idx: int) -> None:
            first, second = self.optimizers()
            loss: Any = sum(self.losses(batch).values())
            self.manual_backward(loss)
            first.step()
            second.step()

    method, content = simclr()
    method.__class__ = Two
    train(method, content, max_epochs=2)
    assert method.step == 2 * PER_EPOCH


def test_a_checkpoint_of_0_1_goes_on(tmp_path: Path) -> None:
    method, content = simclr()
    train(method, content, max_epochs=1)
    method.last_trainer.save_checkpoint(tmp_path / "new.ckpt")
    saved = torch.load(tmp_path / "new.ckpt", weights_only=True)
    del saved["optimizer_states"][0]["clock"]
    torch.save(saved, tmp_path / "old.ckpt")
    resumed = train(simclr()[0], content, tmp_path / "old.ckpt", max_epochs=2)
    assert [step for step, _ in resumed.clocks] == [3, 4, 5]


def test_a_finished_cosine_run_goes_on_when_asked(tmp_path: Path) -> None:
    def method(on_resume: Any) -> tuple[Any, list[Batch]]:
        one, content = simclr()
        one._schedule = WarmupCosine(run_length_on_resume=on_resume)
        return one, content

    one, content = method("keep")
    train(one, content, max_epochs=1)
    one.last_trainer.save_checkpoint(tmp_path / "one.ckpt")
    kept = train(method("keep")[0], content, tmp_path / "one.ckpt", max_epochs=2)
    assert kept.rates == [0.0] * PER_EPOCH
    new = train(method("new")[0], content, tmp_path / "one.ckpt", max_epochs=2)
    wanted = CosineSchedule(0.05, 0.0)
    assert new.rates == pytest.approx([wanted(k, RunLength(6, 3)) for k in (3, 4, 5)])
