"""STL-10: 100,000 unlabeled, 5,000 training and 8,000 test images of 96x96 pixels.

A. Coates, H. Lee and A. Ng, An analysis of single-layer networks in unsupervised feature
learning, AISTATS 2011, https://cs.stanford.edu/~acoates/stl10. The files are the official binaries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sslzoo.checks import check_choice
from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import ArrayImages
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views

TrainOn = Literal["unlabeled", "train", "train+unlabeled"]
_PIXELS = 3 * 96 * 96


def _read_images(path: Path) -> Tensor:
    raw = np.fromfile(path, dtype=np.uint8)
    if len(raw) == 0 or len(raw) % _PIXELS:
        raise ValueError(f"{path} must hold whole 96x96 images, got {len(raw)} bytes")
    # The files are column-major: (N, C, W, H).
    columns = torch.from_numpy(raw).view(-1, 3, 96, 96)
    return columns.transpose(2, 3).contiguous()


def _read_part(folder: Path, part: str) -> ArrayImages:
    images = _read_images(folder / f"{part}_X.bin")
    labels = np.fromfile(folder / f"{part}_y.bin", dtype=np.uint8).astype(np.int64) - 1
    if len(labels) != len(images) or labels.min() < 0 or labels.max() > 9:
        raise ValueError(
            f"{folder / part}_y.bin must hold {len(images)} labels from 1 to 10, got "
            f"{len(labels)} from {labels.min() + 1} to {labels.max() + 1}"
        )
    return ArrayImages(images, torch.from_numpy(labels))


class STL10(ImageDataModule):
    """STL-10 from `<root>/stl10_binary`; evaluation uses its labeled training and test images.

    Args:
        root: the folder that holds `stl10_binary`.
        transform: makes the training views.
        batch_size: size of the global batch, over all ranks.
        train_on: the 100,000 "unlabeled" images, the 5,000 labeled ones ("train"), or both
            ("train+unlabeled", labeled first, without their labels).
        download: download missing data with torchvision.
        eval_view: the evaluation view; None: derived from `transform`, see `ImageDataModule`.
        eval_batch_size: batch size in evaluation.
        num_workers: loader processes; None: 0, since the data is in memory.
        seed: seed of batches and views; None: the run's seed.
        train_fraction: fraction of the training set to use.
        predict_on: the set that `predict` runs on.
        drop_last: drop the last batch of an epoch if it is incomplete.
    """

    known_side = 96

    def __init__(
        self,
        root: str,
        transform: Views,
        batch_size: int = 256,
        train_on: TrainOn = "unlabeled",
        download: bool = False,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        check_choice("train_on", train_on, get_args(TrainOn))
        super().__init__(
            transform,
            batch_size,
            eval_view,
            eval_batch_size,
            num_workers,
            seed,
            train_fraction,
            predict_on,
            drop_last,
        )
        self.root = root
        self.train_on = train_on
        self.download = download

    def prepare_data(self) -> None:
        """Download the data if `download` is set."""
        if self.download:
            from torchvision import datasets

            datasets.STL10(self.root, download=True)

    def read(self) -> ImageSets:
        """Read the parts that are used into memory."""
        folder = Path(self.root).expanduser() / "stl10_binary"
        wanted = ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"]
        wanted += ["unlabeled_X.bin"] if "unlabeled" in self.train_on else []
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"root {self.root!r} must hold STL-10, but {folder} lacks {missing}; unpack "
                "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz there, or set "
                "download=True"
            )
        bank, query = _read_part(folder, "train"), _read_part(folder, "test")
        if self.train_on == "train":
            return ImageSets(bank, query, 10)
        images = _read_images(folder / "unlabeled_X.bin")
        if self.train_on == "train+unlabeled":
            images = torch.cat([bank.images, images])
        return ImageSets(ArrayImages(images, None), query, 10, bank)
