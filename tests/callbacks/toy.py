"""A small module and data set for the evaluation callbacks."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from sslzoo.batch import Batch
from sslzoo.distributed import rank, world_size
from sslzoo.eval.loaders import EvalLoaders

NUM_CLASSES = 4
THIRD_PARTY = [  # message, of Lightning 2.6 throughout
    "`isinstance.treespec, LeafSpec.` is deprecated",  # its CombinedLoader calls torch's old name
    ".*does not have many workers",  # lists in memory need none
    ".*You defined a `validation_step` but have no `val_dataloader`",  # meant: callbacks evaluate
    ".*The number of training batches",  # fewer than log_every_n_steps
]
FILTERS = [pytest.mark.filterwarnings(f"ignore:{message}") for message in THIRD_PARTY]


def quiet() -> None:
    """The same filters on a rank, which undoes them after the call."""
    for message in THIRD_PARTY:
        warnings.filterwarnings("ignore", message=message)


def data(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    center = torch.randn(NUM_CLASSES, 3 * 4 * 4, generator=torch.Generator().manual_seed(9))
    label = torch.randint(NUM_CLASSES, (n,), generator=g)
    x = center[label] + 1.5 * torch.randn(n, 48, generator=g)
    return x.view(n, 3, 4, 4), label


def identity(batch: Batch) -> Batch:
    return batch


def make_loader(n: int, seed: int, size: int, labeled: bool, sharded: bool) -> DataLoader:
    x, label = data(n, seed)
    parts = zip(x.split(size), torch.arange(n).split(size), label.split(size), strict=True)
    batches = [Batch([a, a.flip(3)], i, b if labeled else None) for a, i, b in parts]
    own = batches[rank() :: world_size()] if sharded else batches
    return DataLoader(own, batch_size=None)  # Lightning takes a list for several loaders


class ToyData(LightningDataModule):
    """53 training samples and 31 queries in memory."""

    def __init__(self, labeled: bool = True, sharded: bool = True) -> None:
        super().__init__()
        self.num_classes = NUM_CLASSES if labeled else None
        self.labeled = labeled
        self.sharded = sharded

    def train_dataloader(self) -> DataLoader:
        return make_loader(48, 0, 8, self.labeled, sharded=True)

    def val_dataloader(self) -> DataLoader:
        return make_loader(31, 1, 31, self.labeled, sharded=False)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def eval_dataloaders(self) -> EvalLoaders:
        return EvalLoaders(
            make_loader(53, 0, 5, self.labeled, self.sharded),
            make_loader(31, 1, 3, self.labeled, self.sharded),
            identity,
            self.num_classes,
            self.sharded,
        )


class FitOnly(ToyData):
    """No validation loop inside fit."""

    val_dataloader = LightningDataModule.val_dataloader


class Toy(LightningModule):
    """Pulls the two views' features together; batch norm and dropout are there to be disturbed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 12), nn.BatchNorm1d(12), nn.Dropout(0.1), nn.Linear(12, 6)
        )

    def forward(self, view):
        return self.net(view)

    def training_step(self, batch, batch_idx):
        return (self(batch.views[0]) - self(batch.views[1])).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return {"features": self(batch.views[0]), "label": batch.label, "index": batch.index}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def trainer(folder, *callbacks, max_epochs=2, world_size=1, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=options.pop("enable_checkpointing", False),
        default_root_dir=str(folder),
        **options,
    )
