"""Views: several random views of each sample, batched, on the batch's own device.

Every draw is keyed by the sample, the epoch, the view and the operation, so the views of a
sample do not depend on the batch it comes in. Shapes: B samples, C channels, a view's size S.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, final

import torch
from PIL import Image
from torch import Tensor

from sslzoo.random import Keys
from sslzoo.random.draw_table import DrawTable
from sslzoo.transforms.image.color_space import ColorSpace, Space
from sslzoo.transforms.image.crop import RandomResizedCrop, draft_for
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.layout import chunk_rows, to_planes
from sslzoo.transforms.image.normalize import Normalize
from sslzoo.transforms.image.patches import PerPatch
from sslzoo.transforms.image.resample import pixels_of

_UNKNOWN_SIZE = 224  # pixels, of views without crops on images of several sizes


class Op(Protocol):
    """What follows the crop: a draw for the whole batch, then work on a chunk of its planes.

    Only `PerPatch` changes the side of the planes.
    """

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Random parameters, each (B, ...)."""

    @property
    def apply(self) -> Callable[..., Tensor]:
        """A method (planes, *draws): changes planes (C, B, S, S) in place and returns them."""


@final
class View:
    """One kind of view: a crop, then operations in this order.

    Args:
        crop: the random resized crop, with its flip.
        ops: what follows it.
    """

    def __init__(self, crop: RandomResizedCrop, ops: list[Op]) -> None:
        self.crop = crop
        self.ops = ops
        self.size = crop.size  # pixels of the result's side
        for op in ops:
            self.size = op.side(self.size) if isinstance(op, PerPatch) else self.size


class Views:  # not @final: jsonargparse would refuse the functions that return one
    """The views of a batch, in order; views of equal size that stand together can be joined.

    Computes in float32 whatever autocast or the images' type says.

    Args:
        views: one `View` for each tensor of the result; it may stand in the list several times.
        split: channels of the parts that each view is cut into, a tensor each, for methods whose
            views are channels of one crop (CMC); None: a view is one tensor.
        shared_flip: probability of mirroring all views of a sample together, besides each crop's
            own flip.
    """

    def __init__(
        self,
        views: list[View],
        split: Sequence[int] | None = None,
        shared_flip: float = 0.0,
    ) -> None:
        self.views = views
        self.split = None if split is None else list(split)
        self.shared_flip = shared_flip
        self._plan = DrawTable()

    @property
    def crops(self) -> list[RandomResizedCrop]:
        """The crop of each view."""
        return [view.crop for view in self.views]

    @property
    def sizes(self) -> list[int]:
        """S of each tensor of the result."""
        parts = 1 if self.split is None else len(self.split)
        return [view.size for view in self.views for _ in range(parts)]

    @property
    def trained_size(self) -> int | None:
        """Pixels of the largest crop (multi-crop: the global ones), None where there is no crop."""
        return max((crop.size for crop in self.crops), default=None)

    def trained_view(self, side: int | None = None) -> EvalView:
        """The view of evaluation of an encoder that is trained on these: its size follows theirs.

        Images that have the training size are taken as they are. All others are resized so that
        their central crop is 7/8 of the shorter side, as 224 pixels of 256 are, 128 of 146 and 32
        of 37.

        Args:
            side: shorter side of every image; None where they differ, or it is not known. It is
                also the size where there is no crop, and 224 where neither is known.
        """
        size = self.trained_size or side or _UNKNOWN_SIZE
        return self.eval_view(size, None if size == side else round(size * 8 / 7))

    def eval_view(self, size: int, resize: int | None = None) -> EvalView:
        """A view of evaluation of any size, normalized as these are.

        It is of the same color space, and not split.

        Args:
            size: pixels of its side.
            resize: length of the shorter side before the center crop; None: no resize.
        """
        largest = (view for view in self.views if view.crop.size == self.trained_size)
        ops = next((view.ops for view in largest), [])
        norm = next((op for op in reversed(ops) if isinstance(op, Normalize)), None)
        space: Space = next((op.space for op in ops if isinstance(op, ColorSpace)), "rgb")
        if norm is None:
            return EvalView(size, resize, space=space)
        return EvalView(size, resize, mean=norm.mean, std=norm.std, space=space)

    @torch.no_grad()
    def __call__(self, images: Tensor, keys: Keys) -> list[Tensor]:
        """Make all views.

        Args:
            images: (B, C, H, W) uint8, or float in [0, 1].
            keys: the samples' keys of this epoch.

        Returns:
            One (B, C, S, S) float32 tensor a view (or part of one), on the images' device.
        """
        _check(images, keys)
        batch = len(images)
        own = self._keys(keys)
        results = []
        for view, numbers in self._groups():
            drawn = own.rows(slice(numbers.start * batch, numbers.stop * batch))
            boxes = view.crop.draw(drawn, images.shape[2], images.shape[3])
            flip = view.crop.draw_flip(drawn)
            if self.shared_flip:
                flip ^= keys.bernoulli("shared flip", self.shared_flip).repeat(len(numbers))

            def crop(
                rows: slice, view: View = view, boxes: Tensor = boxes, flip: Tensor = flip
            ) -> Tensor:
                return view.crop.planes(_wrapped(images, rows), boxes[rows], flip[rows])

            results += _finish(view, images, drawn, len(numbers), crop)
        return self._cut(results)

    def _keys(self, keys: Keys) -> Keys:
        """The keys of all views, one view behind the other, with their draws in one table."""
        return self._plan.keys(keys.fold_each("view", len(self.views)))

    def _groups(self) -> list[tuple[View, range]]:
        """Equal views that stand together are made together; with their numbers."""
        groups: list[tuple[View, range]] = []
        for number, view in enumerate(self.views):
            first = number
            if groups and groups[-1][0] is view:
                first = groups.pop()[1].start
            groups.append((view, range(first, number + 1)))
        return groups

    @torch.no_grad()
    def finish(self, crops: list[Tensor], keys: Keys) -> list[Tensor]:
        """What follows the crop, for crops that workers made.

        Args:
            crops: one (B, C, S, S) tensor a view, uint8, or float in [0, 1].
            keys: as in `__call__`.

        Returns:
            One (B, C, S, S) float32 tensor a view (or part of one).
        """
        if len(crops) != len(self.views):
            raise ValueError(f"wanted {len(self.views)} crops, one a view, got {len(crops)}")
        for images in crops:
            _check(images, keys)
        batch = len(keys.key)
        own = self._keys(keys)
        results = []
        for view, numbers in self._groups():
            parts = crops[numbers.start : numbers.stop]

            def crop(rows: slice, parts: list[Tensor] = parts) -> Tensor:
                number = rows.start // max(1, batch)
                if rows.stop - rows.start > batch:
                    return to_planes(torch.cat(parts[number : rows.stop // batch]))
                return to_planes(
                    parts[number][rows.start - number * batch :][: rows.stop - rows.start]
                )

            drawn = own.rows(slice(numbers.start * batch, numbers.stop * batch))
            results += _finish(view, parts[0], drawn, len(parts), crop)
        return self._cut(results)

    @torch.no_grad()
    def crop_one(
        self, image: Image.Image | Tensor, keys: Keys, draft: bool = False
    ) -> list[Tensor]:
        """All crops of one sample, in a loader's worker; `finish` does the rest.

        Args:
            image: PIL image, or (C, H, W) uint8.
            keys: one key, the sample's of this epoch.
            draft: let a JPEG that is not loaded yet decode at 1/2, 1/4 or 1/8 where no crop needs
                more; much faster, no longer within 1/255 of the full image's crops.

        Returns:
            One (C, S, S) uint8 tensor a view.
        """
        pairs = [(crop, keys.fold("view", number)) for number, crop in enumerate(self.crops)]
        if draft and not isinstance(image, Tensor):
            crops = draft_for(image, pairs)
        else:
            pixels = pixels_of(image)
            crops = [crop.crop_one(pixels, key) for crop, key in pairs]
        if self.shared_flip and bool(keys.bernoulli("shared flip", self.shared_flip)):
            return [crop.flip(2) for crop in crops]
        return crops

    def _cut(self, results: list[Tensor]) -> list[Tensor]:
        if self.split is None:
            return results
        for view in results:
            if view.shape[1] != sum(self.split):
                raise ValueError(f"wanted channels to split into {self.split}, got {view.shape[1]}")
        return [part.contiguous() for view in results for part in view.split(self.split, dim=1)]


def _check(images: Tensor, keys: Keys) -> None:
    if images.ndim != 4 or len(images) != len(keys.key):
        raise ValueError(
            f"wanted images (B, C, H, W) and B keys, got {tuple(images.shape)} and "
            f"{len(keys.key)} keys"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are uint8, or float in [0, 1]; got {images.dtype}")


def _wrapped(images: Tensor, rows: slice) -> Tensor:
    """Rows of the images repeated without end: of one round, or of whole rounds."""
    batch, count = len(images), rows.stop - rows.start
    if count > batch:
        return images.repeat(count // batch, 1, 1, 1)
    start = rows.start % max(1, batch)
    return images[start : start + count]


def _finish(
    view: View, images: Tensor, keys: Keys, number: int, crop: Callable[[slice], Tensor]
) -> list[Tensor]:
    """Crop and change chunk by chunk, so that a CPU's intermediates stay in its cache.

    Args:
        view: of all of them.
        images: of one view, (B, C, ...).
        keys: of the views that are made together, one behind the other.
        number: of these views.
        crop: makes the planes of some of the number * B rows.
    """
    batch, channels = images.shape[:2]
    size = view.size
    draws = [op.draw(keys.fold("op", place)) for place, op in enumerate(view.ops)]
    out = torch.empty(number, batch, channels, size, size, device=images.device)
    flat = out.flatten(0, 1)
    widest = channels * max(size * size, images.shape[2] * images.shape[3])
    step = chunk_rows(channels * size * size, widest, batch, number, images.device)

    with torch.autocast(images.device.type, enabled=False):
        for rows in _chunks(number, batch, step):
            planes = crop(rows)
            for op, drawn in zip(view.ops, draws, strict=True):
                planes = op.apply(planes, *(values[rows] for values in drawn))
            flat[rows] = planes.transpose(0, 1)
    return list(out)


def _chunks(number: int, batch: int, step: int) -> list[slice]:
    """At most `step` rows each: of some whole views, or of a part of one."""
    if batch == 0:
        return []
    views = min(max(1, step // batch), number)
    return [
        slice(start, min(start + step, first + views * batch, number * batch))
        for first in range(0, number * batch, views * batch)
        for start in range(first, min(first + views * batch, number * batch), max(step, 1))
    ]
