"""Planes: the layout in which the operations work, and how one touches some samples only.

Inside a view the images are planes (C, B, H, W), channel outermost: a sum over channels is then
one pass over long contiguous rows, and a per-sample factor broadcasts as (B, 1, 1). Operations
change planes in place. Shapes: B samples, C channels, height H, width W.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_CACHE_FLOATS = 400_000  # of a chunk of samples on a CPU: few enough for its caches
_MEMORY_FLOATS = 1 << 26  # of views made together on an accelerator: 256 MiB a tensor
_FEW = 4  # large images: one alone needs only the operations that it drew


def to_planes(images: Tensor) -> Tensor:
    """New planes in [0, 1]. Shapes: images (B, C, H, W), uint8 or float -> (C, B, H, W) float32."""
    batch, channels, height, width = images.shape
    planes = torch.empty(channels, batch, height, width, device=images.device)
    planes.copy_(images.transpose(0, 1))
    return planes.mul_(1 / 255) if images.dtype == torch.uint8 else planes


def per_sample(values: Tensor) -> Tensor:
    """(B,) or (C, B) values that broadcast against planes: (..., 1, 1)."""
    return values[..., None, None]


def chunk_rows(
    floats_per_sample: int, widest: int, batch: int, views: int, device: torch.device
) -> int:
    """How many samples to take at a time: few on a CPU (cache), some whole views on others.

    Args:
        floats_per_sample: of a view.
        widest: floats of the largest tensor that a sample has on the way.
        batch: samples.
        views: of each.
        device: of the images.
    """
    if device.type != "cpu":
        return batch * max(1, min(views, _MEMORY_FLOATS // max(1, widest * batch)))
    rows = _CACHE_FLOATS // floats_per_sample
    return rows if rows >= _FEW else 1


def require_rgb(planes: Tensor, operation: str) -> None:
    """Refuse planes that are not red, green and blue."""
    if planes.shape[0] != 3:
        raise ValueError(
            f"{operation} needs 3 channels (RGB), got {planes.shape[0]}; for gray images use a "
            "recipe without color, such as simclr_views(color=False)"
        )


def on_rows(planes: Tensor, chosen: Tensor, change: Callable[..., None], *values: Tensor) -> None:
    """Apply `change(planes, *values)`, which works in place, to the chosen samples only.

    A CPU takes out the chosen rows, for there a look at the mask costs nothing; an accelerator
    changes all rows of a copy and selects, so that the host never waits.

    Args:
        planes: (C, B, H, W), changed in place.
        chosen: (B,) bool.
        change: an in-place operation on planes.
        *values: (B, ...), one row a sample.
    """
    if planes.device.type != "cpu":
        changed = planes.clone()
        change(changed, *values)
        planes.copy_(torch.where(per_sample(chosen), changed, planes))
        return
    rows = chosen.nonzero()[:, 0]
    if len(rows) == planes.shape[1]:
        change(planes, *values)
    elif len(rows):
        part = planes.index_select(1, rows)
        change(part, *(value[rows] for value in values))
        planes.index_copy_(1, rows, part)
