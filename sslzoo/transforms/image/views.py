"""Views: several random views per sample, made in batches on the batch's device.

Every draw is keyed by sample, epoch, view and operation, so a sample's views do not depend on its
batch. Shapes: B samples, C channels, S side of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from PIL import Image
from torch import Tensor

from sslzoo.random import Keys
from sslzoo.random.draw_table import DrawTable
from sslzoo.transforms.image.color_space import ColorSpace, Space
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.layout import Op, chunk_rows, to_planes
from sslzoo.transforms.image.normalize import Normalize
from sslzoo.transforms.image.patches import PerPatch
from sslzoo.transforms.image.pixels import Raster, pixels_of
from sslzoo.transforms.image.resample import Interpolation
from sslzoo.value_range import Look, as_pixels

_UNKNOWN_SIZE = 224  # pixels, for views without crops on images of several sizes


@final
class View:
    """One kind of view: a crop, then operations in order.

    Args:
        crop: the random resized crop, with its flip.
        ops: the operations after the crop.
        same_box_as: number of the view whose box and flip this one has, at a size and with
            operations of its own; None: its own.
    """

    def __init__(
        self, crop: RandomResizedCrop, ops: list[Op], same_box_as: int | None = None
    ) -> None:
        self.crop = crop
        self.ops = ops
        self.same_box_as = same_box_as
        self.size = crop.size  # side of the result in pixels
        for op in ops:
            self.size = op.side(self.size) if isinstance(op, PerPatch) else self.size


class Views:  # not @final: jsonargparse would refuse the functions that return one
    """The training views of a batch, computed in float32 even under autocast.

    Args:
        views: one `View` per view; consecutive repeats of one `View` are made together.
        split: channels of each part into which every view is split, for methods whose views are
            channels of one crop (CMC); None: no split.
        shared_flip: probability of a flip of all views of a sample, in addition to each crop's.
        boxes: whether batches get the boxes of the crops (`Batch.boxes`), for methods that need
            positions.
        whole: whether evaluation sees the whole shorter side, resized bicubic, as CLIP's.
        squash: whether evaluation resizes the whole image to a square, as SigLIP's.
    """

    def __init__(
        self,
        views: list[View],
        split: Sequence[int] | None = None,
        shared_flip: float = 0.0,
        boxes: bool = False,
        whole: bool = False,
        squash: bool = False,
    ) -> None:
        self.views = views
        self.squash = squash
        self.whole = whole
        self.boxes = boxes
        self.split = None if split is None else list(split)
        self.shared_flip = shared_flip
        self._draws = DrawTable()
        self._look = Look()

    @property
    def crops(self) -> list[RandomResizedCrop]:
        """The crop of each view."""
        return [view.crop for view in self.views]

    @property
    def box_views(self) -> list[int]:
        """Number of the view whose keys draw the box of each view."""
        shared = [view.same_box_as for view in self.views]
        return [number if same is None else same for number, same in enumerate(shared)]

    @property
    def sizes(self) -> list[int]:
        """S per tensor of the result."""
        parts = 1 if self.split is None else len(self.split)
        return [view.size for view in self.views for _ in range(parts)]

    @property
    def trained_size(self) -> int | None:
        """Side of the largest crop in pixels (multi-crop: the global ones); None without views."""
        own = (view.crop.size for view in self.views if view.same_box_as is None)
        return max(own, default=None)

    def trained_view(self, side: int | None = None) -> EvalView:
        """The evaluation view of an encoder trained on these views, of the training size.

        Images of the training size are not resized. Others are resized so that the center crop is
        7/8 of the shorter side: 224 of 256 pixels, 128 of 146, 32 of 37; or all of it if `whole`.
        With `squash`, every image is resized to a square.

        Args:
            side: shorter side of every image; None if sides differ or are unknown. Without views,
                it is the size (224 if it is None).
        """
        size = self.trained_size or side or _UNKNOWN_SIZE
        shorter = size if self.whole else round(size * 8 / 7)
        return self.eval_view(size, None if size == side else shorter)

    def eval_view(self, size: int, resize: int | None = None) -> EvalView:
        """An evaluation view of any size, with these views' normalization and color space.

        Args:
            size: side of the view in pixels.
            resize: shorter side before the center crop; None: no resize. With `squash`, unused.
        """
        largest = (view for view in self.views if view.crop.size == self.trained_size)
        ops = next((view.ops for view in largest), [])
        norm = next((op for op in reversed(ops) if isinstance(op, Normalize)), None)
        space: Space = next((op.space for op in ops if isinstance(op, ColorSpace)), "rgb")
        how: Interpolation = "bicubic" if self.whole else "bilinear"
        mean, std = (None, None) if norm is None else (norm.mean, norm.std)
        resize = None if self.squash else resize
        return EvalView(size, resize, mean, std, how, space=space, squash=self.squash)

    @torch.no_grad()
    def __call__(self, images: Tensor, keys: Keys) -> list[Tensor]:
        """Make all views.

        Args:
            images: (B, C, H, W) pixels: uint8, uint16, bool, or float in [0, 1].
            keys: B keys of the samples in this epoch.

        Returns:
            One (B, C, S, S) float32 tensor per view (or part of one), on the images' device.

        Raises:
            ValueError: the images have another shape or other values.
        """
        _check(images, keys)
        images = as_pixels(images, check=self._look(images))
        batch = len(images)
        own = self._keys(keys)
        results = []
        for view, numbers in self._groups():
            drawn = own.rows(slice(numbers.start * batch, numbers.stop * batch))
            first = numbers.start if view.same_box_as is None else view.same_box_as
            placed = own.rows(slice(first * batch, (first + len(numbers)) * batch))
            boxes = view.crop.draw(placed, images.shape[2], images.shape[3])
            flip = view.crop.draw_flip(placed)
            if self.shared_flip:
                flip ^= keys.bernoulli("shared flip", self.shared_flip).repeat(len(numbers))

            def crop(
                rows: slice,
                out: Tensor | None,
                view: View = view,
                boxes: Tensor = boxes,
                flip: Tensor = flip,
            ) -> Tensor:
                return view.crop.planes(_wrapped(images, rows), boxes[rows], flip[rows], out)

            results += _finish(view, images, drawn, len(numbers), crop)
        return self._cut(results)

    @torch.no_grad()
    def draw_boxes(self, keys: Keys, height: int, width: int) -> Tensor | None:
        """The boxes and flips of the crops that the same keys make, as in `Batch.boxes`.

        Args:
            keys: as in `__call__`.
            height: height of the source images in pixels.
            width: width of the source images.

        Returns:
            (B, V, 5) int64; None if `boxes` is false.
        """
        if not self.boxes:
            return None
        shared = keys.bernoulli("shared flip", self.shared_flip)
        drawn = []
        for number, crop in zip(self.box_views, self.crops, strict=True):
            own = keys.fold("view", number)
            flip = crop.draw_flip(own) ^ shared
            drawn.append(torch.cat((crop.draw(own, height, width), flip[:, None]), dim=1))
        parts = 1 if self.split is None else len(self.split)
        return torch.stack(drawn, dim=1).repeat_interleave(parts, dim=1)

    def _keys(self, keys: Keys) -> Keys:
        """The keys of all views, view by view, with their draws in one table."""
        return self._draws.keys(keys.fold_each("view", len(self.views)))

    def _groups(self) -> list[tuple[View, range]]:
        """Runs of equal views, which are made together, with their numbers."""
        groups: list[tuple[View, range]] = []
        for number, view in enumerate(self.views):
            first = number
            if groups and groups[-1][0] is view:
                first = groups.pop()[1].start
            groups.append((view, range(first, number + 1)))
        return groups

    @torch.no_grad()
    def finish(self, crops: list[Tensor], keys: Keys) -> list[Tensor]:
        """Apply the operations after the crop, to crops from the workers.

        Args:
            crops: one (B, C, S, S) tensor per view, uint8, or float in [0, 1].
            keys: as in `__call__`.

        Returns:
            One (B, C, S, S) float32 tensor per view (or part of one).
        """
        if len(crops) != len(self.views):
            raise ValueError(f"crops must be {len(self.views)}, one per view, got {len(crops)}")
        for images in crops:
            _check(images, keys)
            as_pixels(images, check=False)  # their reader has checked the values
        batch = len(keys.key)
        own = self._keys(keys)
        results = []
        for view, numbers in self._groups():
            parts = crops[numbers.start : numbers.stop]

            def crop(rows: slice, out: Tensor | None, parts: list[Tensor] = parts) -> Tensor:
                number = rows.start // max(1, batch)
                if rows.stop - rows.start > batch:
                    return to_planes(torch.cat(parts[number : rows.stop // batch]), out)
                own = parts[number][rows.start - number * batch :][: rows.stop - rows.start]
                return to_planes(own, out)

            drawn = own.rows(slice(numbers.start * batch, numbers.stop * batch))
            results += _finish(view, parts[0], drawn, len(parts), crop)
        return self._cut(results)

    @torch.no_grad()
    def crop_one(self, image: Image.Image | Tensor | Raster, keys: Keys) -> list[Tensor]:
        """All crops of one sample, in a loader's worker, for `finish`.

        Args:
            image: PIL image, (C, H, W), uint8 or float in [0, 1], or a file of which only the boxes
                are read.
            keys: one key, of the sample in this epoch.

        Returns:
            One (C, S, S) tensor per view, uint8 or float32 as the image.
        """
        pixels = image if isinstance(image, Raster) else pixels_of(image)
        placed = zip(self.crops, self.box_views, strict=True)
        crops = [crop.crop_one(pixels, keys.fold("view", v)) for crop, v in placed]
        if self.shared_flip and bool(keys.bernoulli("shared flip", self.shared_flip)):
            return [crop.flip(2) for crop in crops]
        return crops

    @torch.no_grad()
    def check_channels(self, channels: int) -> None:
        """Apply every operation to one black image, before any data is read.

        Raises:
            ValueError: an operation does not take images of so many channels.
        """
        keys = Keys(torch.zeros(1, dtype=torch.int64))
        planes = []
        for view in dict.fromkeys(self.views):
            planes.append(torch.zeros(channels, 1, view.crop.size, view.crop.size))
            for op in view.ops:
                planes[-1] = op.apply(planes[-1], *op.draw(keys))
        self._cut([plane.transpose(0, 1) for plane in planes])

    def _cut(self, results: list[Tensor]) -> list[Tensor]:
        if self.split is None:
            return results
        for view in results:
            if view.shape[1] != sum(self.split):
                raise ValueError(
                    f"views must have {sum(self.split)} channels to split into {self.split}, got "
                    f"{view.shape[1]}"
                )
        return [part.contiguous() for view in results for part in view.split(self.split, dim=1)]


def _check(images: Tensor, keys: Keys) -> None:
    if images.ndim != 4 or len(images) != len(keys.key):
        raise ValueError(
            f"images must be (B, C, H, W) with B keys, got {tuple(images.shape)} and "
            f"{len(keys.key)} keys"
        )


def _wrapped(images: Tensor, rows: slice) -> Tensor:
    """Rows of the cyclically repeated images, within one repeat or over whole repeats."""
    batch, count = len(images), rows.stop - rows.start
    if count > batch:
        return images.repeat(count // batch, 1, 1, 1)
    start = rows.start % max(1, batch)
    return images[start : start + count]


def _finish(
    view: View,
    images: Tensor,
    keys: Keys,
    number: int,
    crop: Callable[[slice, Tensor | None], Tensor],
) -> list[Tensor]:
    """Make equal views chunk by chunk, so that intermediates stay in a CPU's cache.

    Args:
        view: the kind of view.
        images: (B, C, ...) images of one view.
        keys: keys of all these views, view by view.
        number: number of these views.
        crop: makes the planes of a slice of the number * B rows, in the given memory if it may.
    """
    batch, channels = images.shape[:2]
    size = view.size
    draws = [op.draw(keys.fold("op", position)) for position, op in enumerate(view.ops)]
    out = torch.empty(number, batch, channels, size, size, device=images.device)
    flat = out.flatten(0, 1)
    widest = channels * max(size * size, images.shape[2] * images.shape[3])
    step = chunk_rows(channels * size * size, widest, batch, number, images.device)

    with torch.autocast(images.device.type, enabled=False):
        chunks = _chunks(number, batch, step)
        sizes = [rows.stop - rows.start for rows in chunks]
        split = [[list(values.split(sizes)) for values in drawn] for drawn in draws]
        for i, rows in enumerate(chunks):
            made = flat[rows].transpose(0, 1)
            # A single sample's planes lie as its image does, and are changed in place.
            planes = crop(rows, made if step == 1 and size == view.crop.size else None)
            for op, drawn in zip(view.ops, split, strict=True):
                planes = op.apply(planes, *(values[i] for values in drawn))
            if planes is not made:
                made.copy_(planes)
    return list(out)


def _chunks(number: int, batch: int, step: int) -> list[slice]:
    """Slices of at most `step` rows, each of some whole views or of a part of one."""
    if batch == 0:
        return []
    views = min(max(1, step // batch), number)
    return [
        slice(start, min(start + step, first + views * batch, number * batch))
        for first in range(0, number * batch, views * batch)
        for start in range(first, min(first + views * batch, number * batch), max(step, 1))
    ]
