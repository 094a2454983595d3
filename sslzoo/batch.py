"""Batch: the interface between data modules and methods.

A data module yields a `Batch` whose single view is the raw sample (uint8 image, int16
waveform, token ids); on the device its transform turns that into a `Batch` of the views that
the method expects. Methods see no other data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

# A view is a tensor (B, ...) or a named tuple of tensors, such as values with lengths or a mask.
View = Any


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Mask (..., size) bool, True at the first `lengths` positions. Shapes: lengths (...)."""
    return torch.arange(size, device=lengths.device) < lengths[..., None]


class Padded(NamedTuple):
    """Sequences of different lengths, zero-padded to the longest.

    Attributes:
        values: (B, L, ...).
        lengths: (B,) int64, each sequence's length without padding.
    """

    values: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """Mask (B, L) bool, True inside a sequence."""
        return length_mask(self.lengths, self.values.shape[1])


def check_frames(lengths: Tensor, frames: Tensor, who: str) -> None:
    """Refuse sequences that are too short for a frame, whatever other sequences are with them.

    With gradients, an accelerator is not asked: it would wait in every step.

    Args:
        lengths: (B,) values of each sequence.
        frames: (B,) frames that an encoder makes of them.
        who: the encoder, for the error.

    Raises:
        ValueError: says how many have no frame, and which is the first.
    """
    if torch.is_grad_enabled() and frames.device.type != "cpu":
        return
    short = (frames < 1).nonzero()[:, 0].tolist()
    if short:
        raise ValueError(
            f"sequences must be long enough for a frame of {who}, got {len(short)} of "
            f"{len(frames)} that are not, the first (row {short[0]}) with "
            f"{int(lengths[short[0]])} values; leave them out, or pad them with silence"
        )


class Tokens(NamedTuple):
    """Sentences as token ids, padded at the end.

    Attributes:
        ids: (B, L) int64, or (B, S, L) for S consecutive sentences; positions beyond a sentence's
            length are never read.
        lengths: (B,) or (B, S) int64, in 0..L.
    """

    ids: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """Mask, shaped as ids, True inside a sentence and always at the first position."""
        return length_mask(self.lengths.clamp_min(1), self.ids.shape[-1])


class UnitSequence(NamedTuple):
    """Waveforms with the units of their frames, such as clusters of features (HuBERT).

    Attributes:
        values: (B, L), zero-padded to the longest.
        lengths: (B,) int64, each waveform's samples without padding.
        units: (B, S, U) int64 of S sets of units, from the first sample on; -1: unknown.
    """

    values: Tensor
    lengths: Tensor
    units: Tensor


class Batch(NamedTuple):
    """A batch of B samples with V views each.

    Attributes:
        views: V views, each a tensor (B, ...) or a named tuple of such tensors.
        index: (B,) int64, each sample's position in the training set.
        label: None, (B,), (B, T), multi-hot (B, C), or segments of recordings (B, S, 3): first
            sample, sample after the last, class; read only by evaluation and by methods that
            declare `uses_labels`.
        boxes: None, or (B, V, 5) int64 of image crops: top, left, height and width in pixels of the
            source image, and 1 if the crop is flipped; given if `Views.boxes` is true.
    """

    views: list[View]
    index: Tensor  # type: ignore[assignment]  # overrides tuple.index
    label: Tensor | None = None
    boxes: Tensor | None = None


@dataclass(frozen=True)
class ViewSpec:
    """The views that a method takes.

    Args:
        least: smallest number of views.
        most: largest number; None: any.
        alike: how many of the first views must have one shape; None: all.
        kind: "any"; "images": tensors (B, C, H, W); "tokens": `Tokens`; "image and text": images,
            then `Tokens`.
        size: (H, W) that images must have; None: any.
        boxes: whether the crops' boxes must be given.
        large_first: whether no view may be larger than the first.
    """

    least: int = 1
    most: int | None = None
    alike: int | None = 0
    kind: Literal["any", "images", "tokens", "image and text"] = "any"
    size: tuple[int, int] | None = None
    boxes: bool = False
    large_first: bool = False

    def check_number(self, number: int, who: str) -> None:
        """Refuse another number of views.

        Raises:
            ValueError: names who takes how many, and the number.
        """
        if self.least <= number and (self.most is None or number <= self.most):
            return
        wanted = f"{self.least}" if self.most == self.least else f"at least {self.least}"
        if self.most not in (None, self.least):
            wanted = f"{self.least} to {self.most}"
        raise ValueError(
            f"{who} must have {wanted} view{'s' * (wanted != '1')} per sample, got {number}; a "
            "transform of sslzoo.transforms makes views, and sslzoo.data.with_views puts it on any "
            "data module of (sample, label)"
        )

    def check(self, batch: Batch, who: str) -> None:
        """Refuse a batch whose views are others; reads shapes alone.

        Raises:
            ValueError: names what the views must be, and the shapes and types that they have.
        """
        self.check_number(len(batch.views), who)
        views = batch.views
        parts = [part for view in views for part in _tensors(view)]
        if len({len(part) for part in parts}) > 1:
            raise ValueError(
                f"the views of {who} must have equally many samples, got {describe_views(views)}"
            )
        if self.kind == "image and text":
            image, text = views
            if not isinstance(image, Tensor) or image.ndim != 4 or not isinstance(text, Tokens):
                raise ValueError(
                    f"the views of {who} must be images (B, C, H, W) and Tokens(ids, lengths), got "
                    f"{describe_views(views)}; sslzoo.data.ImageTextFolder makes them"
                )
            if text.ids.ndim != 2:
                raise ValueError(
                    f"the texts of {who} must be one per image, ids (B, L), got "
                    f"{describe_views(views)}"
                )
        if self.kind == "tokens":
            if not all(isinstance(view, Tokens) for view in views):
                raise ValueError(
                    f"the views of {who} must be Tokens(ids, lengths), got {describe_views(views)}"
                )
            if any(view.ids.ndim != 2 for view in views):
                raise ValueError(
                    f"the views of {who} must be single sentences, ids (B, L), got "
                    f"{describe_views(views)}; set window=1 in the data module"
                )
            return
        if any(isinstance(x, Tensor) and not x.is_floating_point() for x in views):
            raise ValueError(
                f"the views of {who} must be floating-point tensors, as a transform of "
                f"sslzoo.transforms makes them from integers, got {describe_views(views)}"
            )
        images = all(isinstance(view, Tensor) and view.ndim == 4 for view in views)
        if self.kind == "images" and not images:
            raise ValueError(
                f"the views of {who} must be images (B, C, H, W), got {describe_views(views)}"
            )
        if self.size and any(tuple(view.shape[2:]) != self.size for view in views):
            height, width = self.size
            raise ValueError(
                f"the views of {who} must have the {height}x{width} pixels of its patch grid, got "
                f"{describe_views(views)}"
            )
        if self.boxes:
            _check_boxes(batch, who)
        first = [_tensors(view)[0].shape for view in views[: self.alike]]
        if len(set(first)) > 1:
            which = f"first {self.alike} views" if self.alike else "views"
            raise ValueError(
                f"the {which} of {who} must have one shape, got {describe_views(views)}"
            )
        if self.large_first:
            check_large_first(views, who)


def check_large_first(views: Sequence[View], who: str) -> None:
    """Refuse views of which one is larger than the first.

    Raises:
        ValueError: names who takes them, and their shapes.
    """
    sizes = [_tensors(view)[0].shape[1:].numel() for view in views]
    if max(sizes) > sizes[0]:
        raise ValueError(
            f"the first views of {who} must be the largest, got {describe_views(views)}; give the "
            "large crops first"
        )


def _check_boxes(batch: Batch, who: str) -> None:
    if batch.boxes is None:
        raise ValueError(
            f"the batch of {who} must have the boxes of its crops, got none; set boxes: true in "
            "the transform of an image data module (multi_crop_views, vicregl_views, Views), or "
            "yield Batch(views, index, label, boxes)"
        )
    wanted = (len(_tensors(batch.views[0])[0]), len(batch.views), 5)
    if batch.boxes.shape != wanted or batch.boxes.is_floating_point():
        raise ValueError(
            f"the boxes of {who} must be integers {wanted}: top, left, height, width and flip per "
            f"view, got {describe_views([batch.boxes])}"
        )


def check_box_areas(boxes: Tensor, who: str) -> None:
    """Refuse crops of no area; reads the values, so an accelerator waits.

    Args:
        boxes: (B, V, 5) of `Batch.boxes`.
        who: the method, for the error.

    Raises:
        ValueError: says how many there are, and where the first is.
    """
    empty = (boxes[..., 2:4] < 1).any(-1).nonzero().tolist()
    if empty:
        row, view = empty[0]
        raise ValueError(
            f"the boxes of {who} must have a height and a width of at least 1, got "
            f"{boxes[row, view, 2:4].tolist()} in view {view} of row {row}, the first of "
            f"{len(empty)}"
        )


def _tensors(view: View) -> tuple[Tensor, ...]:
    return (view,) if isinstance(view, Tensor) else tuple(view)


def describe_views(views: Sequence[View]) -> str:
    """Shapes and types for an error: "(4, 3, 8, 8) float32 and (4, 3, 8, 8) uint8"."""
    told = []
    for view in views:
        parts = [f"{tuple(x.shape)} {str(x.dtype).rpartition('.')[2]}" for x in _tensors(view)]
        name = "" if isinstance(view, Tensor) else type(view).__name__
        told.append(f"{name}({', '.join(parts)})" if name else parts[0])
    return " and ".join(told)


@contextmanager
def blamed_on(views: Sequence[View], what: str) -> Iterator[None]:
    """Raise an error of a network as one that names the views that it was given.

    Args:
        views: what the network was given.
        what: the beginning of the sentence, such as "SimCLR cannot train".

    Raises:
        ValueError: the code inside raised an error, other than a ValueError or for lack of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AssertionError, AttributeError, IndexError) as error:
        line = " ".join(str(error).split())
        raise ValueError(
            f"{what} on views of {describe_views(views)}: {type(error).__name__}: {line:.300}"
        ) from error


_NAMED = (Padded, Tokens, UnitSequence)  # views that are named tuples


def as_batch(data: Any) -> Batch:
    """Convert the output of any loader to a `Batch`.

    Args:
        data: a `Batch`; views as `[view, view, ...]`; or `(views, label)`, where views may be a
            single tensor. A `Batch` made of these has an empty index: methods with a memory need
            `with_views`, or a loader that yields `Batch`.

    Raises:
        ValueError: the data has another form.
    """
    if isinstance(data, Batch):
        return data
    if isinstance(data, _NAMED):
        return _foreign([data], None)
    if isinstance(data, list | tuple) and data:
        first, last = data[0], data[-1]
        several = isinstance(first, list | tuple) and not isinstance(first, _NAMED)
        if several and len(data) == 2:
            return _foreign(list(first), last)
        if len(data) == 2 and _is_labeled(first, last):
            return _foreign([first], last)
        if all(
            isinstance(view, _NAMED) or (isinstance(view, Tensor) and view.ndim > 1)
            for view in data
        ):
            return _foreign(list(data), None)
    raise ValueError(
        "a batch must be Batch(views, index, label), [view, view, ...] or (views, label), got "
        f"{type(data).__name__}"
    )


def _is_labeled(view: Any, label: Any) -> bool:
    """Whether two values are samples and their labels, not two views of the samples."""
    if not isinstance(label, Tensor):
        return False
    if isinstance(view, _NAMED):
        return True
    if not isinstance(view, Tensor):
        return False
    return label.ndim <= 1 or label.ndim < min(view.ndim, 3)  # classes, or multi-hot


def _foreign(views: list[View], label: Tensor | None) -> Batch:
    return Batch(views, _tensors(views[0])[0].new_empty(0).long(), label)


def index_of(batch: Batch, wanted_by: str) -> Tensor:
    """Return the samples' indices (B,), or raise an error that says how to get them."""
    if len(batch.index) == 0:
        raise ValueError(
            f"the batch must have an index for {wanted_by}, which keeps one row per training "
            "sample, got none; wrap the data module in sslzoo.data.with_views, or yield "
            "Batch(views, index, label)"
        )
    return batch.index
