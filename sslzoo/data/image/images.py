"""Image sets: an array in memory, or files that workers decode and crop.

N images of the training (or query) set; B of them make a batch.
"""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.datamodule import SampleSet, readable_rows
from sslzoo.data.image.decode import BROKEN, broken_error, open_image, reduce, to_rgb, upright_size
from sslzoo.eval.fingerprint import files_digest, labels_digest, tensor_digest
from sslzoo.random import Keys, sample_keys
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views

OnBroken = Literal["error", "skip"]


class ImageSet(SampleSet):
    """N images that make batches of raw uint8 (or float in [0, 1]) images.

    `needs_crops` says that a batch is made by `cropped(...)`, whose views are the crops; otherwise
    its one view is the whole images.

    Attributes:
        channels: of each image; None: not known.
    """

    needs_crops: bool
    channels: int | None = None

    def side(self, wanted: int | None) -> int | None:
        """The shorter side of every image in pixels; None where they differ, or it is not known.

        Args:
            wanted: the only side that matters, so that a search can end at the first other one;
                None: any.
        """
        return None

    @abstractmethod
    def subset(self, rows: Tensor) -> ImageSet:
        """The images of these rows, numbered anew. Shapes: rows (M,) int64."""

    @abstractmethod
    def cropped(self, crops: Crops, keep_size: bool) -> ImageSet:
        """The same images, cut by `crops` where that is needed.

        Args:
            crops: cuts the views.
            keep_size: whether a broken image's row is filled (training) or left out (evaluation).
        """


class ArrayImages(ImageSet):
    """Images of one size in memory: a batch is one `index_select`.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64 or None.
        left_out: see `SampleSet`.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, left_out: int = 0) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        self.images = images
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
        label = None if self.labels is None else self.labels.index_select(0, rows)
        return Batch([self.images.index_select(0, rows)], rows, label)

    def subset(self, rows: Tensor) -> ArrayImages:
        labels = None if self.labels is None else self.labels[rows]
        return ArrayImages(self.images[rows], labels, self.left_out)

    def cropped(self, crops: Crops, keep_size: bool) -> ArrayImages:
        return self

    def fingerprint(self) -> str:
        return tensor_digest({"images": self.images}) + labels_digest(self.labels)


class Crops(Protocol):
    """Cuts the views of one image out of its file; must be picklable."""

    def keys(self, index: Tensor) -> Keys:
        """(B,) keys of a batch's samples."""
        ...

    def cut(self, image: Image.Image, keys: Keys, upright: bool) -> list[Tensor]:
        """uint8 (C, h, w) tensors of one image that is not decoded yet. Shapes: keys (1,)."""
        ...


class TrainCrops:
    """Each view's own random crop, the one that `transform` would make on the device.

    Args:
        transform: whose crops are made; the ops after them are left to `transform.finish`.
        seed: of the keys.
        epoch: shared int64 scalar, written by the sampler (`KeyedSampler.shared_epoch`).
    """

    def __init__(self, transform: Views, seed: int, epoch: Tensor) -> None:
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    def keys(self, index: Tensor) -> Keys:
        return sample_keys(self.seed, int(self.epoch), index)

    def cut(self, image: Image.Image, keys: Keys, upright: bool) -> list[Tensor]:
        height, width = upright_size(image, upright)
        crops = self.transform.crops
        if min(height, width) >= 4 * max(crop.size for crop in crops):  # else none can be reduced
            spare = min(_spare(c, keys.fold("view", v), height, width) for v, c in enumerate(crops))
            reduce(image, spare)
        return self.transform.crop_one(to_rgb(image, upright), keys)


class EvalCrops:
    """The one deterministic view of evaluation.

    Args:
        view: whose `crop_one` is made here and `finish` on the device.
    """

    def __init__(self, view: EvalView) -> None:
        self.view = view

    def keys(self, index: Tensor) -> Keys:
        return sample_keys(0, 0, index)  # nothing is drawn

    def cut(self, image: Image.Image, keys: Keys, upright: bool) -> list[Tensor]:
        side = self.view.resize or self.view.size
        reduce(image, min(image.size) / side)
        return [self.view.crop_one(to_rgb(image, upright))]


class FileImages(ImageSet):
    """Images in files, decoded and cropped where the batch is made (in a worker).

    With `on_broken="skip"` an image that cannot be read is marked in `broken`, and its row of a
    training batch is filled with the next readable sample of the batch, cyclically: that sample's
    crops, index and label, so that an index always names the pixels beside it. With
    `keep_size=False`, for evaluation, the row is left out.

    Args:
        paths: N files.
        labels: (N,) int64 or None.
        crops: cuts the views; None where only the listing is wanted.
        on_broken: "error" raises at the first broken image and names its path.
        upright: turn photographs as their EXIF orientation says.
        keep_size: whether a broken image's row is filled (training) or left out.
    """

    def __init__(
        self,
        paths: Sequence[str] | np.ndarray,
        labels: Tensor | None,
        crops: Crops | None = None,
        on_broken: OnBroken = "error",
        upright: bool = True,
        keep_size: bool = True,
    ) -> None:
        # One block of bytes: a list of str would be copied into each forked worker, page by page.
        self._paths = (
            paths
            if isinstance(paths, np.ndarray)
            else np.array([os.fsencode(p) for p in paths], dtype=np.bytes_)
        )
        self.labels = labels
        self.needs_crops = True
        self.channels = 3
        self.crops = crops
        self.on_broken = on_broken
        self.upright = upright
        self.keep_size = keep_size
        self.broken = torch.zeros(len(self._paths), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._paths)

    def side(self, wanted: int | None) -> int | None:
        """Reads headers, up to the first image of another side."""
        if wanted is None:
            return None
        for index in range(len(self)):
            try:
                with open_image(self.path(index)) as image:
                    if min(image.size) != wanted:
                        return None
            except BROKEN:
                continue  # it is an error, or skipped, where it is needed
        return wanted

    def path(self, index: int) -> str:
        return os.fsdecode(bytes(self._paths[index]))

    @property
    def num_broken(self) -> int:
        return int(self.broken.sum())

    def fingerprint(self) -> str:
        return files_digest(map(self.path, range(len(self)))) + labels_digest(self.labels)

    def subset(self, rows: Tensor) -> FileImages:
        labels = None if self.labels is None else self.labels[rows]
        paths = self._paths[rows.numpy()]
        return FileImages(paths, labels, self.crops, self.on_broken, self.upright, self.keep_size)

    def cropped(self, crops: Crops, keep_size: bool) -> FileImages:
        other = FileImages(self._paths, self.labels, crops, self.on_broken, self.upright, keep_size)
        other.broken = self.broken  # both mark broken images in one place
        return other

    def __getitems__(self, index: list[int]) -> Batch:
        if self.crops is None:
            raise ValueError("a listing of files has no crops: use `cropped(...)`")
        key = self.crops.keys(torch.tensor(index)).key
        cut = [self._cut(i, Keys(key[row : row + 1])) for row, i in enumerate(index)]
        rows = self._readable(cut, index)
        views = zip(*(cut[row] for row in rows), strict=True)  # type: ignore[arg-type]
        kept = torch.tensor([index[row] for row in rows])
        label = None if self.labels is None else self.labels[kept]
        return Batch([torch.stack(view) for view in views], kept, label)

    def _cut(self, index: int, keys: Keys) -> list[Tensor] | None:
        path = self.path(index)
        assert self.crops is not None
        try:
            with open_image(path) as image:
                return self.crops.cut(image, keys, self.upright)
        except BROKEN as error:
            if self.on_broken == "error":
                raise broken_error(path, error) from error
            if not self.broken[index]:
                self.broken[index] = True
                warnings.warn(f"skipped an image that cannot be read: {path}", stacklevel=2)
            return None

    def _readable(self, cut: list[list[Tensor] | None], index: list[int]) -> list[int]:
        """The row that fills each row, or only the readable rows."""
        rows = readable_rows([views is not None for views in cut], self.keep_size)
        if not rows:
            raise ValueError(
                f"none of the {len(index)} images of a batch can be read, the first is "
                f"{self.path(index[0])}"
            )
        return rows


def _spare(crop: RandomResizedCrop, keys: Keys, height: int, width: int) -> float:
    """How many times the crop's box, a side, is larger than what is made of it."""
    box = crop.draw(keys, height, width)[0]
    return min(int(box[2]), int(box[3])) / crop.size
