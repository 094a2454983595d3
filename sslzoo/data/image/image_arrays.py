"""ImageArrays: images that are rows of one array, of .npy, .npz, HDF5 or Zarr.

Shapes: N images of C channels, H x W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.checks import check_interval
from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import Crops, ImageSet
from sslzoo.data.image.rasters import needed
from sslzoo.data.listing import select_rows, spread
from sslzoo.eval.fingerprint import files_digest, labels_digest
from sslzoo.random import stratified_split
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views
from sslzoo.value_range import TooDarkError, ValueRange, as_pixels, check_value_range, from_array

_SAMPLE = 32  # images whose values are checked before training
_SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".zarr")


class StoredImages(ImageSet):
    """Images that are read from their file batch by batch, with their own channels and bits.

    Args:
        path: the file, or the folder of a Zarr store.
        name: the array in it.
        labels: (M,) int64, or None.
        channels: C, if known, which tells the layout.
        value_range: the values of black and white; None: those of the type.
        clip: whether values outside `value_range` are clipped.
        rows: (M,) int64, the images of the array that are used; None: all N.
    """

    def __init__(
        self,
        path: str,
        name: str,
        labels: Tensor | None,
        channels: int | None = None,
        value_range: ValueRange | None = None,
        clip: bool = False,
        rows: Tensor | None = None,
    ) -> None:
        self.path, self.name, self.labels, self.rows = path, name, labels, rows
        self.value_range, self.clip, self.may_be_dark = value_range, clip, True
        self.needs_crops = False
        self._array: Any = None
        self._process = 0
        shape = self._open().shape
        self._last = _channels_last(shape, channels, path)
        self.channels = 1 if len(shape) == 3 else shape[3 if self._last else 1]
        self._side = min(shape[1:3] if len(shape) == 3 or self._last else shape[2:])

    def side(self, wanted: int | None) -> int:
        return self._side

    def __len__(self) -> int:
        return self._open().shape[0] if self.rows is None else len(self.rows)

    def __getitems__(self, index: list[int]) -> Batch:
        kept = torch.tensor(index)
        return Batch([self.read(kept)], kept, select_rows(self.labels, kept))

    def read(self, index: Tensor) -> Tensor:
        """Images (B, C, H, W) at positions (B,), uint8 or float32 from 0 to 1.

        Raises:
            ValueRangeError: the values are not pixels.
        """
        array, rows = self._open(), index if self.rows is None else self.rows[index]
        images = np.stack([np.asarray(array[row]) for row in rows.tolist()])
        if images.ndim == 3:
            images = images[:, None]
        elif self._last:
            images = images.transpose(0, 3, 1, 2)
        name = f"images of {self.path}"
        values = from_array(images, name)
        return as_pixels(values, self.value_range, name, True, self.may_be_dark, self.clip)

    def check_sample(self) -> None:
        """Read a few evenly spaced images.

        Raises:
            ValueRangeError: their values are not pixels, or none of 16 bits has more than 12.
        """
        self.may_be_dark, bright = False, False
        dark: TooDarkError | None = None
        for row in spread(len(self), _SAMPLE):
            try:
                bright |= self.read(torch.tensor([row])).is_floating_point()
            except TooDarkError as error:
                dark = dark or error
        if dark is not None and not bright:
            raise dark
        self.may_be_dark = True

    def subset(self, rows: Tensor) -> StoredImages:
        chosen = rows if self.rows is None else self.rows[rows]
        labels = select_rows(self.labels, rows)
        given = self.channels, self.value_range, self.clip, chosen
        return StoredImages(self.path, self.name, labels, *given)

    def cropped(self, crops: Crops, keep_size: bool) -> StoredImages:
        return self

    def fingerprint(self) -> str:
        files = files_digest(_files(self.path)) + labels_digest(self.labels)
        return f"{files} {self.name} {labels_digest(self.rows)} {self.value_range} {self.clip}"

    def _open(self) -> Any:
        """The array, opened once in every process, since a worker must not share the handle."""
        if self._array is None or self._process != os.getpid():
            self._array, self._process = open_arrays(self.path)[self.name], os.getpid()
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


class ImageArrays(ImageDataModule):
    """Images that are rows of an array: .npy, .npz, HDF5 (.h5, .hdf5) or Zarr (.zarr).

    The array is (N, H, W), (N, H, W, C) or (N, C, H, W), of any number of channels and bits.
    Batches are read from the file, except from .npz, which is read into memory.

    For the other arguments see `ImageDataModule`.

    Args:
        train: the file of the training images.
        val: the file of the validation images; None: no validation.
        val_fraction: fraction of each class of `train` to hold out, instead of `val`.
        images: name of the array in the file; .npy has no names.
        label: name of the array (N,) of classes 0, 1, ..., for evaluation; None: no labels.
        channels: C, needed where the axes do not tell; None: the shorter axis is that of channels.
        value_range: see `ImageFolder`.
        clip: see `ImageFolder`.
    """

    def __init__(
        self,
        train: str,
        transform: Views,
        batch_size: int = 256,
        val: str | None = None,
        val_fraction: float | None = None,
        images: str = "images",
        label: str | None = None,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
        clip: bool = False,
    ) -> None:
        if val_fraction is not None:
            check_interval("val_fraction", val_fraction, 0, 1, "()")
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.files = train, val
        self.val_fraction = val_fraction
        self.names = images, label
        self.channels = channels
        self.value_range, self.clip = check_value_range(value_range), clip

    def read(self) -> ImageSets:
        """Open the arrays, read the labels, and check a sample of the values."""
        train, query = (None if file is None else self._set(file) for file in self.files)
        assert train is not None
        if self.val_fraction is not None:
            parts = stratified_split(train.labels, len(train), self.val_fraction)
            train, query = (train.subset(rows) for rows in parts)
        if query is not None and query.channels != train.channels:
            raise ValueError(
                f"train and val must have the same channels, got {train.channels} and "
                f"{query.channels}"
            )
        labels = [s.labels for s in (train, query) if s is not None and s.labels is not None]
        return ImageSets(train, query, 1 + max(int(x.max()) for x in labels) if labels else None)

    def _set(self, file: str) -> StoredImages:
        path, (images, label) = os.fspath(Path(file).expanduser()), self.names
        arrays = open_arrays(path)
        name = "" if path.endswith(".npy") else images
        known = [key for key in (name, label) if key is not None]
        missing = [key for key in known if key not in arrays]
        if missing:
            raise ValueError(
                f"{file} must have the arrays {known} (images and label), but has "
                f"{sorted(arrays)[:8]}"
            )
        labels = None if label is None else _labels(np.asarray(arrays[label][:]), file)
        found = StoredImages(path, name, labels, self.channels, self.value_range, self.clip)
        if not len(found) or (labels is not None and len(labels) != len(found)):
            count = None if labels is None else len(labels)
            raise ValueError(
                f"{file} must have images, and as many labels, got {len(found)} and {count}"
            )
        found.check_sample()
        return found


def open_arrays(path: str) -> Any:
    """The arrays of a file by name; that of .npy, or of a Zarr store of one array, is "".

    Raises:
        ValueError: the file does not exist or has another suffix.
        ImportError: the format needs a package that is not installed.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _SUFFIXES or not os.path.exists(path):
        raise ValueError(
            f"an array must be an existing file of {', '.join(_SUFFIXES)}, got {path!r}"
        )
    if suffix == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    if suffix == ".zarr":
        zarr = needed("zarr", path)
        node = zarr.open(path, mode="r")
        return {"": node} if isinstance(node, zarr.Array) else node
    return needed("h5py", path).File(path, "r")


def _channels_last(shape: tuple[int, ...], channels: int | None, path: str) -> bool:
    if len(shape) == 3:
        return False
    if len(shape) != 4 or not all(shape):
        raise ValueError(
            f"images must be (N, H, W), (N, H, W, C) or (N, C, H, W), got {tuple(shape)} in {path}"
        )
    ends = shape[1] == channels, shape[3] == channels
    if ends[0] != ends[1]:
        return ends[1]
    if shape[1] == shape[3]:
        raise ValueError(
            "the channels of images must be the second or last axis, which have one length in "
            f"{tuple(shape)} of {path}; set channels, or store (N, H, W)"
        )
    return shape[3] < shape[1]


def _labels(values: np.ndarray, file: str) -> Tensor:
    flat = values.reshape(len(values), -1)
    whole = values.dtype.kind in "bui" or (values.dtype.kind == "f" and (values % 1 == 0).all())
    if flat.shape[1] != 1 or not whole or values.min() < 0:
        raise ValueError(
            f"labels must be (N,) classes 0, 1, ..., got {values.dtype} {values.shape} in {file}"
        )
    return torch.from_numpy(flat[:, 0].astype(np.int64))


def _files(path: str) -> Iterator[str]:
    """The file, or all files of a Zarr store."""
    if not os.path.isdir(path):
        yield path
    for folder, _, names in sorted(os.walk(path)):
        yield from (os.path.join(folder, name) for name in sorted(names))
