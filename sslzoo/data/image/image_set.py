"""Image sets: an array in memory, or files that workers decode and crop.

Shapes: N images of the training (or query) set, B images of a batch.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.datamodule import OnBroken, SampleSet, readable_rows
from sslzoo.data.image.decode import BROKEN, broken_error, in_file, reduce
from sslzoo.data.image.rasters import open_image
from sslzoo.data.listing import pack_paths, select_rows, spread, unpack_path
from sslzoo.eval.fingerprint import described, files_digest, labels_digest, tensor_digest
from sslzoo.eval.loaders import BrokenBatchError
from sslzoo.random import Keys, sample_keys
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding, Raster, stack_pixels, upright_size
from sslzoo.transforms.image.views import Views
from sslzoo.value_range import ValueRangeError, as_pixels

_FEW, _SAMPLE = 32, 1024  # headers that are read to find the side of most images


class ImageSet(SampleSet):
    """N images, read as batches of raw images, uint8 or float in [0, 1].

    Attributes:
        needs_crops: whether batches need `cropped(...)`, and their views are then the crops;
            otherwise a batch's one view holds the whole images.
        channels: channels of each image; None if unknown.
    """

    needs_crops: bool
    channels: int | None = None

    def side(self, wanted: int | None) -> int | None:
        """The shorter side of most images in pixels; None if sides differ or are unknown.

        Args:
            wanted: the only side of interest; None: any.
        """
        return None

    @abstractmethod
    def subset(self, rows: Tensor) -> ImageSet:
        """The images at `rows`, (M,) int64, with indices 0..M-1."""

    @abstractmethod
    def cropped(self, crops: Crops, keep_size: bool) -> ImageSet:
        """The same images, cropped by `crops` if `needs_crops`.

        Args:
            crops: crops the views.
            keep_size: whether an unreadable image's row is filled (training) or dropped
                (evaluation).
        """


class ArrayImages(ImageSet):
    """Images of one size in memory; reading a batch is one `index_select`.

    Args:
        images: (N, C, H, W) pixels: uint8, uint16, bool, or float in [0, 1].
        labels: (N,) int64, or None.
        left_out: see `SampleSet`.
        value_range: the values of black and white; None: those of the type.
        clip: whether values outside `value_range` are clipped.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        left_out: int = 0,
        value_range: Sequence[float] | None = None,
        clip: bool = False,
    ) -> None:
        if images.ndim != 4:
            raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")
        self.images = as_pixels(images, value_range, clip=clip)
        self.labels = labels
        self.left_out = left_out
        self.needs_crops = False
        self.channels = images.shape[1]

    def side(self, wanted: int | None) -> int:
        return min(self.images.shape[2:])

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, index: list[int]) -> Batch:
        rows = torch.tensor(index)
        return Batch([self.images.index_select(0, rows)], rows, select_rows(self.labels, rows))

    def subset(self, rows: Tensor) -> ArrayImages:
        return ArrayImages(self.images[rows], select_rows(self.labels, rows), self.left_out)

    def cropped(self, crops: Crops, keep_size: bool) -> ArrayImages:
        return self

    def fingerprint(self) -> str:
        return tensor_digest({"images": self.images}) + labels_digest(self.labels)


class Cut(NamedTuple):
    """The crops of one image.

    Attributes:
        views: V crops (C, h, w).
        boxes: (V, 5) int64 as in `Batch`, or None.
    """

    views: list[Tensor]
    boxes: Tensor | None = None


def stack_boxes(cuts: Sequence[Cut]) -> Tensor | None:
    """The boxes of a batch, (B, V, 5), if its images have them."""
    boxes = [cut.boxes for cut in cuts if cut.boxes is not None]
    return torch.stack(boxes) if boxes else None


class Crops(Protocol):
    """Crops the views of one image in a worker; must be picklable."""

    def keys(self, index: Tensor) -> Keys:
        """(B,) keys of a batch's samples."""
        ...

    def cut(self, image: Image.Image | Tensor | Raster, keys: Keys, decoding: Decoding) -> Cut:
        """Crop an image, not decoded yet, or pixels (C, H, W), to (C, h, w), with one key."""
        ...


class TrainCrops:
    """The random crop of each view, as `transform` would make it on the device.

    Args:
        transform: the training views; `transform.finish` applies the operations after the crops.
        seed: seed of the keys.
        epoch: shared int64 scalar that the sampler writes (`KeyedSampler.shared_epoch`).
    """

    def __init__(self, transform: Views, seed: int, epoch: Tensor) -> None:
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    def keys(self, index: Tensor) -> Keys:
        return sample_keys(self.seed, int(self.epoch), index)

    def cut(self, image: Image.Image | Tensor | Raster, keys: Keys, decoding: Decoding) -> Cut:
        height, width = upright_size(image, decoding.upright)
        crops = self.transform.crops
        large = min(height, width) >= 4 * max(crop.size for crop in crops)
        if large and isinstance(image, Image.Image):  # else none may be reduced
            placed = zip(crops, self.transform.box_views, strict=True)
            spare = min(_spare(c, keys.fold("view", v), height, width) for c, v in placed)
            reduce(image, spare)
        found = decoding.lazily(image)
        boxes = self.transform.draw_boxes(keys, found.shape[1], found.shape[2])
        if boxes is not None:
            boxes[..., :4] *= round(height / found.shape[1])  # of a reduced JPEG
            boxes = boxes[0]
        return Cut(self.transform.crop_one(found, keys), boxes)


class EvalCrops:
    """The deterministic crop of the evaluation view.

    Args:
        view: the evaluation view; its `crop_one` runs here and its `finish` on the device.
        fit: resize the shorter side of images of other sizes than most, for a view without a
            resize.
    """

    def __init__(self, view: EvalView, fit: bool = False) -> None:
        self.view = view
        self.fit = fit

    def keys(self, index: Tensor) -> Keys:
        return sample_keys(0, 0, index)  # unused: nothing is random

    def cut(self, image: Image.Image | Tensor | Raster, keys: Keys, decoding: Decoding) -> Cut:
        view = self.view
        short = min(upright_size(image, upright=False))
        if self.fit and short != view.size and view.resize is None and not view.squash:
            view = EvalView(view.size, view.size, interpolation=view.interpolation)
        if isinstance(image, Image.Image):
            reduce(image, short / (view.resize or view.size))
        return Cut([view.crop_one(decoding(image))])


class Tiles(NamedTuple):
    """Parts of images that are samples of their own.

    Args:
        file: (N,) int64, the image's position among the files.
        box: (N, 4) int64: top, left, height, width.
    """

    file: Tensor
    box: Tensor

    def take(self, rows: Tensor) -> Tiles:
        """The parts at `rows`, (M,) int64."""
        return Tiles(self.file[rows], self.box[rows])


class FileImages(ImageSet):
    """Image files that are decoded and cropped when a batch is read (in a worker).

    With `on_broken="skip"`, an unreadable image is marked in `broken`. Its row of a training batch
    is filled with the next readable sample of the batch, cyclically: its crops, index and label.
    With `keep_size=False`, for evaluation, the row is dropped.

    Args:
        paths: N files, or the array of `pack_paths`.
        labels: (N,) int64, or None.
        crops: crops the views; None: batches cannot be read.
        on_broken: raise an "error" for an unreadable image, or "skip" and count it.
        decoding: how a file becomes pixels.
        keep_size: whether a broken image's row is filled (training) or left out.
        tiles: the parts of the images that are samples, N in all; None: whole images.
    """

    def __init__(
        self,
        paths: Sequence[str] | np.ndarray,
        labels: Tensor | None,
        crops: Crops | None = None,
        on_broken: OnBroken = "error",
        decoding: Decoding = Decoding(),  # noqa: B008 (a named tuple of numbers)
        keep_size: bool = True,
        tiles: Tiles | None = None,
    ) -> None:
        self._paths = paths if isinstance(paths, np.ndarray) else pack_paths(paths)
        self.labels = labels
        self.needs_crops = True
        self.channels = decoding.channels
        self.crops = crops
        self.on_broken = on_broken
        self.decoding = decoding
        self.keep_size = keep_size
        self.tiles = tiles
        self.broken = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._paths if self.tiles is None else self.tiles.file)

    def side(self, wanted: int | None) -> int | None:
        """Read headers of evenly spaced images, and say which are others than most."""
        if wanted is None:
            return None
        if self.tiles is not None:
            sides = self.tiles.box[:, 2:].amin(1).unique().tolist()
            return sides[0] if len(sides) == 1 else None
        found: dict[int, int] = {}
        most = _FEW if self.decoding.reader else _SAMPLE  # a reader reads whole files
        for rows in (spread(len(self), _FEW), spread(len(self), most)):
            found |= {row: self._short(row) for row in rows if row not in found}
            known = {row: short for row, short in found.items() if short}
            others = [row for row, short in known.items() if short != wanted]
            if 2 * len(others) >= len(known):
                return wanted if not known else None
        if others:
            rank_zero_warn(
                f"{len(others)} of {len(known)} images have another shorter side than {wanted} "
                f"pixels, such as {known[others[0]]} in {self.path(others[0])}; evaluation resizes "
                f"them to {wanted}"
            )
        return wanted

    def _short(self, row: int) -> int:
        """The shorter side; 0 if the image is unreadable, which reading a batch reports."""
        try:
            with self._open(row) as image:
                return min(image.size)
        except BROKEN:
            return 0

    def path(self, index: int) -> str:
        file = index if self.tiles is None else int(self.tiles.file[index])
        return unpack_path(self._paths[file])

    def _open(self, index: int) -> AbstractContextManager[Image.Image | Raster]:
        return open_image(self.path(index), self.decoding.channels, self.decoding.reader)

    @property
    def num_broken(self) -> int:
        return int(self.broken.sum())

    def fingerprint(self) -> str:
        files = files_digest(map(unpack_path, self._paths)) + labels_digest(self.labels)
        files += "" if self.tiles is None else described(self.tiles)
        given = self.decoding._replace(may_be_dark=False)
        same = given == Decoding(upright=given.upright)
        return files if same else f"{files} {described(tuple(given))}"

    def subset(self, rows: Tensor) -> FileImages:
        labels, paths = select_rows(self.labels, rows), self._paths
        tiles = None if self.tiles is None else self.tiles.take(rows)
        paths = paths[rows.numpy()] if tiles is None else paths
        given = self.crops, self.on_broken, self.decoding, self.keep_size
        return FileImages(paths, labels, *given, tiles)

    def cropped(self, crops: Crops, keep_size: bool) -> FileImages:
        given = self.labels, crops, self.on_broken, self.decoding, keep_size
        other = FileImages(self._paths, *given, self.tiles)
        other.broken = self.broken  # shared, so that both count the same images
        return other

    def __getitems__(self, index: list[int]) -> Batch:
        if self.crops is None:
            raise ValueError("crops must be set to read a batch, got None; use `cropped(...)`")
        key = self.crops.keys(torch.tensor(index)).key
        cut = [self._cut(i, Keys(key[row : row + 1])) for row, i in enumerate(index)]
        rows = self._readable(cut, index)
        found = [cast(Cut, cut[row]) for row in rows]
        kept = torch.tensor([index[row] for row in rows])
        views = [stack_pixels(view) for view in zip(*(one.views for one in found), strict=True)]
        return Batch(views, kept, select_rows(self.labels, kept), stack_boxes(found))

    def _cut(self, index: int, keys: Keys) -> Cut | None:
        path = self.path(index)
        assert self.crops is not None
        try:
            with self._open(index) as image:
                return self.crops.cut(self._part(image, index), keys, self.decoding)
        except ValueRangeError as error:
            raise in_file(path, error) from error
        except BROKEN as error:
            if self.on_broken == "error":
                raise broken_error(path, error) from error
            if not self.broken[index]:
                self.broken[index] = True
                warnings.warn(f"skipped an unreadable image: {path}", stacklevel=2)
            return None

    def _part(self, image: Image.Image | Raster, index: int) -> Image.Image | Raster | Tensor:
        if self.tiles is None:
            return image
        box = self.tiles.box[index].tolist()
        if isinstance(image, Raster):
            return image.part(box)
        top, left, height, width = box
        return self.decoding(image)[:, top : top + height, left : left + width]

    def _readable(self, cut: list[Cut | None], index: list[int]) -> list[int]:
        """The source row of each row of the batch; see `readable_rows`."""
        rows = readable_rows([one is not None for one in cut], self.keep_size)
        if not rows:
            raise BrokenBatchError(
                f"all {len(index)} images of a batch are unreadable, the first is "
                f"{self.path(index[0])}"
            )
        return rows


def _spare(crop: RandomResizedCrop, keys: Keys, height: int, width: int) -> float:
    """Ratio of the side of the crop's box to the side of its result."""
    box = crop.draw(keys, height, width)[0]
    return min(int(box[2]), int(box[3])) / crop.size
