"""OnlineSegmentation: its value is that of the function, on any module with a map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from sslzoo.callbacks import OnlineSegmentation
from sslzoo.eval.dense import DenseOptions, RetrievalOptions, dense_metrics
from sslzoo.eval.loaders import EvalLoaders
from tests.callbacks.toy import FILTERS, Toy, ToyData, trainer
from tests.eval.dense.toy import loaders

pytestmark = FILTERS


class Masked(LightningDataModule):
    """Training batches of the toy; masks in evaluation."""

    def train_dataloader(self):
        return ToyData().train_dataloader()

    def eval_dataloaders(self) -> EvalLoaders:
        return loaders()


class Dense(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, 4)

    def tokens(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def flat(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


def test_the_value_is_that_of_the_function(tmp_path: Path) -> None:
    callback = OnlineSegmentation(k=3, memory_size=50, features="tokens")
    module, run = Dense(), trainer(tmp_path, callback)
    run.fit(module, datamodule=Masked())
    options = DenseOptions(knn=RetrievalOptions(3, 0.02, 50))
    wanted = dense_metrics(
        module, loaders(), ["knn_segmentation"], options, mapper=lambda x: module.conv(x).detach()
    )
    value = run.callback_metrics["val/knn_miou_k3_t0.02"].item()
    assert value == pytest.approx(wanted["knn_miou_k3_t0.02"])


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path: Path) -> None:
    for callback, data, message in (
        (OnlineSegmentation(), Masked(), "must have forward_map .* got Dense"),
        (OnlineSegmentation(features="nothing"), Masked(), "which has no 'nothing'"),
        (OnlineSegmentation(features="flat"), Masked(), r"the feature map of Dense must be"),
        (OnlineSegmentation(features="tokens"), ToyData(), r"must have masks \(B, H, W\)"),
    ):
        module = Dense()
        before = module.conv.weight.clone()
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, callback).fit(module, datamodule=data)
        assert torch.equal(module.conv.weight, before)
    with pytest.raises(ValueError, match="protocols must be one of"):
        OnlineSegmentation(protocols=["knn"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1"):
        OnlineSegmentation(every_n_epochs=0)
