"""Small data modules and views for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, TextTransformer
from sslzoo.batch import Batch
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import ArrayImages
from sslzoo.methods import CLIP
from sslzoo.random import Keys
from sslzoo.transforms import Views


class PlainViews(Views):
    """Two views that add a keyed number to the image: tells when the keys are others."""

    def __init__(self) -> None:
        super().__init__([])

    def __call__(self, images: Tensor, keys: Keys) -> list[Tensor]:
        shifts = [keys.fold("view", v).uniform("shift", 1, 1, 1) for v in range(2)]
        return [images.float() / 255 + shift for shift in shifts]


class PlainEval:
    """The image in [0, 1]."""

    size, resize = 4, None

    def __call__(self, images: Tensor) -> Tensor:
        return images.float() / 255


def clip(num_ids: int = 100, max_length: int = 12, kind: type[CLIP] = CLIP) -> CLIP:
    """The smallest image and text towers."""
    return kind(
        SmallResNet((8, 16)),
        TextTransformer(num_ids, width=16, depth=1, heads=2, max_length=max_length),
        nn.Linear(16, 8, bias=False),
        nn.Linear(16, 8, bias=False),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01),
    )


def quiet(callbacks: list[Any], max_epochs: int = 1) -> Trainer:
    """A trainer that writes nothing."""
    return Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )


class ToyData(ImageDataModule):
    """N gray images of 4x4 whose first pixel is their index (below 256)."""

    def __init__(self, num_samples: int = 23, query: int = 7, **changes: Any) -> None:
        plain: dict[str, Any] = {
            "transform": PlainViews(),
            "batch_size": 4,
            "eval_view": PlainEval(),
            "eval_batch_size": 3,
            "num_workers": None,
            "seed": 5,
            "train_fraction": 1.0,
            "predict_on": "query",
        }
        super().__init__(**{**plain, **changes})
        self.sizes = num_samples, query

    def read(self) -> ImageSets:
        sets = []
        for size in self.sizes:
            images = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 4, 4)
            sets.append(ArrayImages(images, torch.arange(size) % 3))
        return ImageSets(sets[0], sets[1], 3)


class Recorder(LightningModule):
    """Writes down (epoch, index, view 0's and 1's first pixels) of each training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, list[int], list[float]]] = []
        self.evaluated: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        pixels = torch.stack(batch.views)[:, :, 0, 0, 0].flatten().tolist()
        self.seen.append((self.current_epoch, batch_idx, batch.index.tolist(), pixels))
        return self.weight * 1.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated.append(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated.append(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return batch.index

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
