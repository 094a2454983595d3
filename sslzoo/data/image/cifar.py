"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 color images of 32x32.

A. Krizhevsky, Learning multiple layers of features from tiny images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. Reads the official python batches.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslzoo.data.image.datamodule import ImageDataModule, ImageSets, PredictOn
from sslzoo.data.image.images import ArrayImages
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views

# The folder inside the official archive, its training and its test files.
_TEN = ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"])
_HUNDRED = ("cifar-100-python", ["train"], ["test"])

# All that the official pickles name; anything else would be code in a data file.
_ALLOWED = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.numeric", "_frombuffer"): lambda buffer, dtype, shape, order: np.frombuffer(
        buffer, dtype=dtype
    ).reshape(shape, order=order),
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"a CIFAR batch holds arrays and lists only, this one asks for "
                             f"{module}.{name}: it is not an official file")  # fmt: skip
        return _ALLOWED[module, name]


def _read_batch(path: Path, label_key: bytes) -> tuple[np.ndarray, list[int]]:
    try:
        with path.open("rb") as file:
            batch = _DataUnpickler(file, encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), list(batch[label_key])
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
            raise ValueError(f"data is {pixels.dtype} {pixels.shape}, wanted uint8 "
                             f"({len(labels)}, 3072)")  # fmt: skip
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read {path} as a CIFAR batch: {error}") from error
    return pixels, labels


def _read_set(folder: Path, names: list[str], label_key: bytes) -> ArrayImages:
    parts = [_read_batch(folder / name, label_key) for name in names]
    pixels = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)
    labels = [label for part in parts for label in part[1]]
    return ArrayImages(torch.from_numpy(pixels), torch.tensor(labels))


def _folder(root: str, layout: tuple[str, list[str], list[str]]) -> Path:
    name, train, test = layout
    folder = Path(root).expanduser() / name
    if Path(root).expanduser().name == name:
        folder = Path(root).expanduser()
    missing = [file for file in train + test if not (folder / file).is_file()]
    if missing:
        archive = f"{name.replace('batches-py', 'python')}.tar.gz"
        raise ValueError(
            f"no {name} in {root!r}: {folder} lacks {missing}; unpack "
            f"https://www.cs.toronto.edu/~kriz/{archive} there, or set download=True"
        )
    return folder


class CIFAR10(ImageDataModule):
    """CIFAR-10 from `<root>/cifar-10-batches-py`.

    Args:
        root: the folder that holds `cifar-10-batches-py`.
        transform: makes the training views.
        batch_size: the global batch, over all ranks.
        download: fetch the data (by torchvision) where it is missing.
        eval_view: makes the view of evaluation; None: it follows `transform`, see
            `ImageDataModule`.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that load; None: 0, the data is in memory.
        seed: of batches and views; None: the run's.
        train_fraction: of the training set that is used, stratified.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
    """

    known_side = 32

    def __init__(
        self,
        root: str,
        transform: Views,
        batch_size: int = 256,
        download: bool = False,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 500,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
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
        self.download = download

    def prepare_data(self) -> None:
        """Download where that was asked for."""
        if self.download:
            from torchvision import datasets

            datasets.CIFAR10(self.root, download=True)

    def read(self) -> ImageSets:
        """Both parts, in memory."""
        folder = _folder(self.root, _TEN)
        return ImageSets(
            _read_set(folder, _TEN[1], b"labels"), _read_set(folder, _TEN[2], b"labels"), 10
        )


class CIFAR100(ImageDataModule):
    """CIFAR-100 from `<root>/cifar-100-python`, with its 100 fine or 20 coarse labels.

    Args:
        root: the folder that holds `cifar-100-python`.
        transform: makes the training views.
        batch_size: the global batch, over all ranks.
        coarse: whether the labels are the 20 superclasses.
        download: fetch the data (by torchvision) where it is missing.
        eval_view: makes the view of evaluation; None: it follows `transform`, see
            `ImageDataModule`.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that load; None: 0, the data is in memory.
        seed: of batches and views; None: the run's.
        train_fraction: of the training set that is used, stratified.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
    """

    known_side = 32

    def __init__(
        self,
        root: str,
        transform: Views,
        batch_size: int = 256,
        coarse: bool = False,
        download: bool = False,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 500,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
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
        self.coarse = coarse
        self.download = download

    def prepare_data(self) -> None:
        """Download where that was asked for."""
        if self.download:
            from torchvision import datasets

            datasets.CIFAR100(self.root, download=True)

    def read(self) -> ImageSets:
        """Both parts, in memory."""
        folder = _folder(self.root, _HUNDRED)
        key = b"coarse_labels" if self.coarse else b"fine_labels"
        train, query = (_read_set(folder, names, key) for names in _HUNDRED[1:])
        return ImageSets(train, query, 20 if self.coarse else 100)
