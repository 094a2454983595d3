"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels.

A. Krizhevsky, Learning multiple layers of features from tiny images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. The files are the official Python batches.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import ArrayImages
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views

# Folder of the official archive, training files, test files.
_TEN = ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"])
_HUNDRED = ("cifar-100-python", ["train"], ["test"])

# All names in the official pickles; any other could run code.
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
            raise ValueError(
                f"a CIFAR batch must hold only arrays and lists, got {module}.{name}, which no "
                "official file has"
            )
        return _ALLOWED[module, name]


def _read_batch(path: Path, label_key: bytes) -> tuple[np.ndarray, list[int]]:
    try:
        with path.open("rb") as file:
            batch = _DataUnpickler(file, encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), list(batch[label_key])
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
            raise ValueError(
                f"data must be uint8 ({len(labels)}, 3072), got {pixels.dtype} {pixels.shape}"
            )
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
            f"root {root!r} must hold {name}, but {folder} lacks {missing}; unpack "
            f"https://www.cs.toronto.edu/~kriz/{archive} there, or set download=True"
        )
    return folder


class _CIFAR(ImageDataModule):
    """Base class of CIFAR-10 and CIFAR-100; a subclass implements `read`."""

    known_side = 32
    official: str  # name of torchvision's class

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
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download the data if `download` is set."""
        if self.download:
            from torchvision import datasets

            getattr(datasets, self.official)(self.root, download=True)


class CIFAR10(_CIFAR):
    """CIFAR-10 from `<root>/cifar-10-batches-py`.

    For the other arguments see `ImageDataModule`.

    Args:
        root: the folder that holds `cifar-10-batches-py`.
        download: download missing data with torchvision.
    """

    official = "CIFAR10"

    def read(self) -> ImageSets:
        """Read the training and test images into memory."""
        folder = _folder(self.root, _TEN)
        train, query = (_read_set(folder, names, b"labels") for names in _TEN[1:])
        return ImageSets(train, query, 10)


class CIFAR100(_CIFAR):
    """CIFAR-100 from `<root>/cifar-100-python`, with its 100 fine or 20 coarse labels.

    For the other arguments see `ImageDataModule`.

    Args:
        root: the folder that holds `cifar-100-python`.
        coarse: whether the labels are the 20 superclasses.
        download: download missing data with torchvision.
    """

    official = "CIFAR100"

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
            *(root, transform, batch_size, download, eval_view, eval_batch_size, num_workers),
            *(seed, train_fraction, predict_on, drop_last),
        )
        self.coarse = coarse

    def read(self) -> ImageSets:
        """Read the training and test images into memory."""
        folder = _folder(self.root, _HUNDRED)
        key = b"coarse_labels" if self.coarse else b"fine_labels"
        train, query = (_read_set(folder, names, key) for names in _HUNDRED[1:])
        return ImageSets(train, query, 20 if self.coarse else 100)
