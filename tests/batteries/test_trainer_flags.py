"""The flags of Lightning's Trainer do what Lightning says, or are refused."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.callbacks import OnlineKNN
from sslzoo.data import ImageFolder
from sslzoo.methods import SimCLR
from sslzoo.transforms import simclr_views
from tests.toys import build

pytestmark = pytest.mark.filterwarnings("ignore")


class Record(Callback):
    """What each batch, step and validation loop saw."""

    def __init__(self) -> None:
        self.index: list[list[int]] = []
        self.views: list[Tensor] = []
        self.norms: list[float] = []
        self.validated_after: list[int] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.index.append(batch.index.tolist())
        self.views.append(batch.views[0])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated_after.append(len(self.index))


class Norms(SimCLR):
    """Keeps the norm of the gradients that the optimizer is given."""

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(*args, **kwargs)
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        record = next(c for c in self.trainer.callbacks if isinstance(c, Record))
        record.norms.append(float(torch.nn.utils.get_total_norm(grads)))


def run(folder: Path, **options: Any) -> tuple[Any, Record, Trainer]:
    """Two epochs on 60 images, 12 per batch, unless the options say otherwise."""
    seed_everything(0, verbose=False)
    method, _ = build(SimCLR)
    method.__class__ = Norms
    method._optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    data = ImageFolder(
        root=str(folder), transform=simclr_views(size=8), batch_size=12, num_workers=0
    )
    record = Record()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[record, OnlineKNN(3, every_n_epochs=2)],
        **{"max_epochs": 2, **options},
    )
    trainer.fit(method, data)
    return method, record, trainer


@pytest.fixture(scope="module")
def plain(folder: Path) -> Record:
    return run(folder)[1]


SAME: list[dict[str, Any]] = [
    {"use_distributed_sampler": False},
    {"inference_mode": False},
    {"reload_dataloaders_every_n_epochs": 1},
    {"detect_anomaly": True},
    {"deterministic": True},
    {"benchmark": True},
    {"sync_batchnorm": True},
    {"num_sanity_val_steps": 0},
    {"limit_val_batches": 0},
    {"limit_val_batches": 0.3},
    {"check_val_every_n_epoch": 2},
    {"val_check_interval": 0.4},
    {"profiler": "simple"},
    {"barebones": True, "callbacks": None},
]


@pytest.mark.parametrize("options", SAME, ids=str)
def test_a_flag_that_says_nothing_of_batches_changes_none(
    options: dict[str, Any], folder: Path, plain: Record
) -> None:
    if "barebones" in options:  # it takes no callback that logs
        method, _ = build(SimCLR)
        method._optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
        data = ImageFolder(str(folder), simclr_views(size=8), batch_size=12)
        Trainer(accelerator="cpu", barebones=True, max_epochs=1).fit(method, data)
        assert method.step == len(plain.index) // 2
        return
    method, record, trainer = run(folder, **options)
    assert record.index == plain.index
    assert all(torch.equal(a, b) for a, b in zip(record.views, plain.views, strict=True))
    assert method.step == len(plain.index)
    assert "val/knn_top1_k3_t0.07" in trainer.callback_metrics


def test_fewer_batches_are_the_first_of_each_epoch(folder: Path, plain: Record) -> None:
    per_epoch = len(plain.index) // 2
    for limit in (2, 2 / per_epoch + 1e-9):
        method, record, _ = run(folder, limit_train_batches=limit)
        assert record.index == plain.index[:2] + plain.index[per_epoch : per_epoch + 2]
        assert tuple(method.run_length) == (4, 2)


@pytest.mark.parametrize("number", [1, 2, 0.5])
def test_overfitting_takes_the_same_batches_in_every_epoch(
    number: float, folder: Path, plain: Record
) -> None:
    method, record, _ = run(folder, overfit_batches=number, max_epochs=3)
    count = number if number >= 1 else int(number * len(plain.index) / 2)
    assert record.index == plain.index[: int(count)] * 3
    assert method.step == 3 * count


def test_a_development_run_evaluates_too(folder: Path, plain: Record) -> None:
    method, record, trainer = run(folder, fast_dev_run=True)
    assert record.index == plain.index[:1]
    assert method.step == 1
    assert "val/knn_top1_k3_t0.07" in trainer.callback_metrics


def test_gradients_are_accumulated_and_clipped(folder: Path, plain: Record) -> None:
    assert max(plain.norms) > 0.02
    method, record, _ = run(folder, gradient_clip_val=0.01, accumulate_grad_batches=2)
    assert record.index == plain.index
    assert method.step == 2 * -(-len(plain.index) // 4)
    assert len(record.norms) == method.step
    assert max(record.norms) < 0.0101


def test_validation_runs_where_it_is_asked_for(folder: Path, plain: Record) -> None:
    per_epoch = len(plain.index) // 2
    assert plain.validated_after == [per_epoch, 2 * per_epoch]
    assert run(folder, check_val_every_n_epoch=2)[1].validated_after == [2 * per_epoch]
    every = run(folder, val_check_interval=2, check_val_every_n_epoch=None)[1].validated_after
    assert every == list(range(2, 2 * per_epoch + 1, 2))


def test_time_ends_a_run(folder: Path) -> None:
    method, _, trainer = run(folder, max_time=timedelta(milliseconds=300), max_epochs=10_000)
    assert 0 < method.step < 10_000
    assert trainer.current_epoch < 10_000


def test_other_strategies_are_refused(folder: Path) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Other(SingleDeviceStrategy):
        pass

    run(folder, strategy=Other("cpu"), max_epochs=1)  # a single device all the same
    from lightning.pytorch.strategies import FSDPStrategy

    with pytest.raises(ValueError, match=r"requires a GPU|must be a single device or DDP"):
        run(folder, strategy=FSDPStrategy())
