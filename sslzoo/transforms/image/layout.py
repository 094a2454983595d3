"""Planes: the memory layout of the image operations, and operations on some samples only.

Inside a view, images are planes (C, B, H, W) with the channel outermost. A sum over channels is
then one pass over long contiguous rows, and a per-sample factor broadcasts as (B, 1, 1). Operations
change planes in place. Shapes: B samples, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sslzoo.random import Keys

_CACHE_FLOATS = 400_000  # per chunk of samples on a CPU, to fit in its caches
_MEMORY_FLOATS = 1 << 26  # per tensor of views made together on an accelerator: 256 MiB
_FEW = 4  # with fewer rows, single samples are faster: each runs only the operations it drew


class Op(Protocol):
    """An operation after the crop: random draws, then a change of the planes.

    Only `PerPatch` changes the side of the planes.
    """

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Random parameters, each (B, ...)."""

    @property
    def apply(self) -> Callable[..., Tensor]:
        """A method (planes, *draws) that changes planes (C, B, S, S) in place and returns them."""


def to_planes(images: Tensor, out: Tensor | None = None) -> Tensor:
    """Copy images (B, C, H, W), uint8 or float, to planes (C, B, H, W), float32 in [0, 1].

    Args:
        images: the images.
        out: memory for the planes; None: new memory.
    """
    batch, channels, height, width = images.shape
    if out is None:
        out = torch.empty(channels, batch, height, width, device=images.device)
    out.copy_(images.transpose(0, 1))
    return out.mul_(1 / 255) if images.dtype == torch.uint8 else out


def per_sample(values: Tensor) -> Tensor:
    """Reshape values (B,) or (C, B) to broadcast against planes: (..., 1, 1)."""
    return values[..., None, None]


def chunk_rows(
    floats_per_sample: int, widest: int, batch: int, views: int, device: torch.device
) -> int:
    """Number of rows per chunk: few on a CPU (for its cache), whole views elsewhere.

    Args:
        floats_per_sample: floats per sample of a view.
        widest: floats per sample of the largest intermediate tensor.
        batch: number of samples.
        views: number of views.
        device: device of the images.
    """
    if device.type != "cpu":
        return batch * max(1, min(views, _MEMORY_FLOATS // max(1, widest * batch)))
    rows = _CACHE_FLOATS // floats_per_sample
    return rows if rows >= _FEW else 1


def require_rgb(planes: Tensor, operation: str) -> None:
    """Refuse planes that are not red, green and blue."""
    if planes.shape[0] != 3:
        raise ValueError(
            f"images must have 3 channels (RGB) for {operation}, got {planes.shape[0]}; use "
            "sslzoo.transforms.channel_views, for any number of channels, or a recipe without "
            "color, such as simclr_views(color=False)"
        )


def on_rows(planes: Tensor, chosen: Tensor, change: Callable[..., None], *values: Tensor) -> None:
    """Apply the in-place operation `change(planes, *values)` to the chosen samples only.

    A CPU gathers the chosen rows. An accelerator changes all rows of a copy and selects, since
    reading the mask would synchronize with the host.

    Args:
        planes: (C, B, H, W), changed in place.
        chosen: (B,) bool.
        change: an in-place operation on planes.
        *values: (B, ...), one row per sample.
    """
    if planes.device.type != "cpu":
        changed = planes.clone()
        change(changed, *values)
        planes.copy_(torch.where(per_sample(chosen), changed, planes))
        return
    if planes.shape[1] == 1:
        if chosen.item():
            change(planes, *values)
        return
    rows = chosen.nonzero()[:, 0]
    if len(rows) == planes.shape[1]:
        change(planes, *values)
    elif len(rows):
        part = planes.index_select(1, rows)
        change(part, *(value[rows] for value in values))
        planes.index_copy_(1, rows, part)
