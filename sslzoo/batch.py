"""Batch: the interface between data modules and methods.

A data module yields a `Batch` whose single view is the raw sample (uint8 image, int16
waveform, token ids); on the device its transform turns that into a `Batch` of the views that
the method expects. Methods see no other data.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# A view is a tensor (B, ...) or a named tuple of tensors, such as values with lengths or a mask.
View = Any


class Padded(NamedTuple):
    """Sequences of different lengths, zero-padded to the longest.

    Args:
        values: (B, L, ...).
        lengths: (B,) int64, each sequence's length without padding.
    """

    values: Tensor
    lengths: Tensor


class Tokens(NamedTuple):
    """Sentences as token ids, padded at the end.

    Args:
        ids: (B, L) int64; positions beyond a sentence's length are never read.
        lengths: (B,) int64, in 0..L.
    """

    ids: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """Mask (B, L) bool, True inside a sentence and always at the first position."""
        positions = torch.arange(self.ids.shape[1], device=self.ids.device)
        return positions < self.lengths.clamp_min(1)[:, None]


class Batch(NamedTuple):
    """A batch of B samples with V views each.

    Args:
        views: V views, each a tensor (B, ...) or a named tuple of such tensors.
        index: (B,) int64, each sample's position in the training set.
        label: None, (B,), (B, T) or multi-hot (B, C); read only by evaluation and by methods
            that declare `uses_labels`.
    """

    views: list[View]
    index: Tensor  # type: ignore[assignment]  # overrides tuple.index
    label: Tensor | None = None


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
    if isinstance(data, list | tuple) and data:
        first, last = data[0], data[-1]
        if isinstance(first, list | tuple) and len(data) == 2:
            return _foreign(list(first), last)
        if all(isinstance(view, Tensor) and view.ndim > 1 for view in data):
            return _foreign(list(data), None)
        if len(data) == 2 and isinstance(first, Tensor) and isinstance(last, Tensor):
            return _foreign([first], last)
    raise ValueError(
        "a batch must be Batch(views, index, label), [view, view, ...] or (views, label), got "
        f"{type(data).__name__}"
    )


def _foreign(views: list[View], label: Tensor | None) -> Batch:
    return Batch(views, views[0].new_empty(0).long(), label)


def index_of(batch: Batch, wanted_by: str) -> Tensor:
    """Return the samples' indices (B,), or raise an error that says how to get them."""
    if len(batch.index) == 0:
        raise ValueError(
            f"the batch must have an index for {wanted_by}, which keeps one row per training "
            "sample, got none; wrap the data module in sslzoo.data.with_views, or yield "
            "Batch(views, index, label)"
        )
    return batch.index


def label_of(batch: Batch, wanted_by: str) -> Tensor:
    """Return the samples' classes (B,), or raise an error that describes the labels found."""
    if batch.label is None or batch.label.dim() != 1:
        given = None if batch.label is None else tuple(batch.label.shape)
        raise ValueError(f"labels must be (B,), one class per sample, for {wanted_by}, got {given}")
    return batch.label
