"""SimSiam without its stop-gradient collapses and says so; SimSiam does neither."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.callbacks import CollapseWarning, OnlineSpectrum
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.heads import MLP, simsiam_predictor, simsiam_projector
from sslzoo.methods import SimSiam
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
    with pytest.warns(CollapseWarning, match=r"least 30\), spread"):
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
