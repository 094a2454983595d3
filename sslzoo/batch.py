"""Batch: the one contract between data modules and methods.

A data module yields a `Batch` whose single view is the raw sample (uint8 image, int16
waveform, token ids); on the device its transform turns that into a `Batch` of the views that
the method wants. Methods see nothing else of the data.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

# A view is a tensor (B, ...) or a named tuple of tensors, such as values with lengths or a mask.
View = Any


class Batch(NamedTuple):
    """B samples, each seen V times.

    Args:
        views: V views, each a tensor (B, ...) or a named tuple of such tensors.
        index: (B,) int64, each sample's position in the training set.
        label: None, (B,), (B, T) or multi-hot (B, C); read by evaluation and by methods that
            declare `uses_labels`, by nothing else.
    """

    views: list[View]
    index: Tensor
    label: Tensor | None = None
