"""Methods without their guard against collapse fall into it, and say so; with it, neither."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.callbacks import CollapseWarning, OnlinePrototypes, OnlineSpectrum
from sslzoo.callbacks.online_prototypes import effective_prototypes
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.heads import MLP, DINOHead, simsiam_predictor, simsiam_projector
from sslzoo.methods import DINO, SimSiam, SwAV
from sslzoo.optim import ConstantSchedule
from tests.callbacks.toy import FILTERS, identity, quiet, trainer

pytestmark = FILTERS
KINDS, SIZE, EPOCHS = 10, 16, 12


class WithoutStopGradient(SimSiam):
    """The mistake on purpose."""

    def stop_gradient(self, z: Tensor) -> Tensor:
        return z


def images(n: int, seed: int) -> Tensor:
    """Coarse random pictures of ten kinds."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.rand(KINDS, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    label = torch.randint(KINDS, (n,), generator=generator)
    coarse = kinds[label] + 0.3 * torch.randn(n, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=SIZE, mode="bilinear")


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    noisy = x + 0.1 * torch.randn(x.shape, generator=generator)
    return noisy * (0.6 + 0.8 * torch.rand(len(x), 3, 1, 1, generator=generator))


class Pictures(LightningDataModule):
    """256 pictures in batches of 64, and 128 queries."""

    def train_dataloader(self) -> DataLoader:
        generator, x = torch.Generator().manual_seed(1), images(256, 0)
        order = torch.randperm(256, generator=generator)
        views = [[view(x[i], generator) for _ in range(2)] for i in order.split(64)]
        batches = [Batch(pair, i) for pair, i in zip(views, order.split(64), strict=True)]
        return DataLoader(batches, batch_size=None)

    def eval_dataloaders(self) -> EvalLoaders:
        query = DataLoader([Batch([images(128, 2)], torch.arange(128))], batch_size=None)
        return EvalLoaders(query, query, identity, None, sharded=False)


def fit(cls: type[SimSiam], folder: object, **options: float) -> dict[str, Tensor]:
    torch.manual_seed(0)
    method = cls(
        SmallResNet((8, 16, 32)),
        MLP([32, 32, 32], bias=False),  # no norm at the end: nothing else keeps them apart
        simsiam_predictor(32, 16),
        optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    )
    spectrum = OnlineSpectrum(features="embed", **options)
    run = trainer(folder, spectrum, max_epochs=EPOCHS)
    run.fit(method, datamodule=Pictures())
    return run.callback_metrics


def test_without_the_stop_gradient_the_warning_appears_once(tmp_path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", CollapseWarning)
        metrics = fit(WithoutStopGradient, tmp_path)
    (message,) = [str(w.message) for w in seen if w.category is CollapseWarning]
    assert "'embed'" in message
    assert "docs/collapse.md" in message
    assert metrics["val/effective_rank"] < 2


def test_the_method_itself_keeps_its_features_apart(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        metrics = fit(SimSiam, tmp_path)
    assert metrics["val/effective_rank"] > 4


def test_the_threshold_can_be_moved(tmp_path) -> None:
    with pytest.warns(CollapseWarning, match=r"at least 30\) and the spread"):
        fit(SimSiam, tmp_path, least_rank=30.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        fit(WithoutStopGradient, tmp_path, least_rank=0.0, least_spread=0.0)


def fit_on_rank(rank: int, folder: str) -> int:
    quiet()
    run = trainer(folder, OnlineSpectrum(least_rank=1e9), world_size=2)
    method = SimSiam(
        SmallResNet((8, 16)), simsiam_projector(16, out_dim=8), simsiam_predictor(8, 4)
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", CollapseWarning)
        run.validate(method, datamodule=WithValidation(), verbose=False)
    return len([w for w in seen if w.category is CollapseWarning])


class WithValidation(Pictures):
    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()


def test_rank_0_alone_warns(ranks, tmp_path) -> None:
    assert ranks(2, fit_on_rank, str(tmp_path)) == [1, 0]


# -- prototypes


class WithoutSinkhorn(SwAV):
    """Assignments as they come: nothing shares the samples out."""

    def assign(self, z: Tensor) -> Tensor:
        return (z @ self.prototypes.weight.T / self.epsilon).softmax(dim=-1)


def swav(cls: type[SwAV]) -> SwAV:
    return cls(
        SmallResNet((8, 16, 32)),
        MLP([32, 64, 16], bias=False),
        num_prototypes=10,
        freeze_prototypes_steps=2,
        optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    )


def dino(teacher_temperature: float) -> DINO:
    return DINO(
        SmallResNet((8, 16, 32)),
        DINOHead(32, 10, hidden_dim=64, bottleneck_dim=16, norm=True),
        teacher_temperature=ConstantSchedule(teacher_temperature),
        momentum=ConstantSchedule(0.9),
        freeze_last_layer_epochs=0,
        optimizer=partial(torch.optim.AdamW, lr=0.003),
    )


def fit_with_prototypes(make: Callable[[], LightningModule], folder: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    silent = OnlineSpectrum(least_rank=0, least_spread=0)
    # Of 60 steps, prototypes need more than half to begin.
    run = trainer(folder, silent, OnlinePrototypes(grace=0.7), max_epochs=15)
    run.fit(make(), datamodule=Pictures())
    return run.callback_metrics


@pytest.mark.parametrize("make", [partial(swav, WithoutSinkhorn), partial(dino, 10.0)])
def test_collapsed_prototypes_are_seen_where_features_show_nothing(make, tmp_path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", CollapseWarning)
        metrics = fit_with_prototypes(make, tmp_path)
    (message,) = [str(w.message) for w in seen if w.category is CollapseWarning]
    assert "prototypes" in message
    assert metrics["val/effective_prototypes"] < 1.1
    assert metrics["val/effective_rank"] > 5


@pytest.mark.parametrize("make", [partial(swav, SwAV), partial(dino, 0.04)])
def test_prototypes_that_tell_samples_apart_are_left_alone(make, tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        metrics = fit_with_prototypes(make, tmp_path)
    assert metrics["val/effective_prototypes"] > 2


def test_effective_prototypes_count_what_tells_samples_apart() -> None:
    one_each = torch.eye(4).repeat(3, 1)
    assert effective_prototypes(one_each) == pytest.approx(4)
    assert effective_prototypes(one_each[:1].repeat(9, 1)) == pytest.approx(1)  # one for all
    assert effective_prototypes(torch.full((9, 4), 0.25)) == pytest.approx(1)  # no preference
    assert effective_prototypes(torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])) == (
        pytest.approx(2)
    )


def count_on_rank(rank: int, start: int, end: int) -> float:
    p = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    return effective_prototypes(p[start:end] if rank else p[end:])


def test_effective_prototypes_are_of_all_ranks(ranks) -> None:
    p = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    for share in (20, 50):  # the second leaves a rank without any
        assert ranks(2, count_on_rank, 0, share) == pytest.approx([effective_prototypes(p)] * 2)


@pytest.mark.parametrize(
    ("options", "match"), [({"max_samples": 1}, "got 1"), ({"grace": 2}, "got 2")]
)
def test_wrong_settings_are_named(options, match) -> None:
    with pytest.raises(ValueError, match=match):
        OnlinePrototypes(**options)
