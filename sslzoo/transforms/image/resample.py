"""Crop, resize and flip as two matrix products, or in bytes on a CPU.

A resize is linear, so crop, resize and flip of a sample are `rows @ image @ columns^T`. The two
matrices contain the filter (triangle or Keys' cubic), its antialiasing and the box.
Shapes: B samples, C channels, sources (H, W), results (S, S); a box is (top, left, height,
width) in pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.transforms.image.layout import to_planes

Interpolation = Literal["bilinear", "bicubic"]
_TABLE_FLOATS = 1 << 22  # 16 MiB; all boxes of a side of 32 pixels, with flips, take half of it


def _filter(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """The filter at a distance in (widened) pixels; Keys' cubic has a = -1/2, as in PIL."""
    x = distance.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp_min(0)
    near, far = x.clamp_max(1), x.clamp(1, 2)  # makes each piece constant outside its range
    inner = (1.5 * near - 2.5) * near * near + 1
    outer = ((-0.5 * far + 2.5) * far - 4) * far + 2
    return inner + outer


def resampling_matrix(
    start: Tensor,
    length: Tensor,
    flip: Tensor,
    source: int,
    size: int,
    interpolation: Interpolation,
    antialias: bool,
) -> Tensor:
    """Matrices that crop, resize and flip one axis; pixels outside the box have weight 0.

    Args:
        start: (B,) first pixel of the box.
        length: (B,) pixels of the box.
        flip: (B,) bool, whether the result is flipped.
        source: length of the axis.
        size: length of the result.
        interpolation: the filter.
        antialias: widen the filter to shrink (PIL, torchvision); False: TensorFlow's resize, whose
            "bicubic" differs from torch's (a = -3/4 and repeated edges).

    Returns:
        (B, size, source) float32, whose rows sum to 1.
    """
    start, length = start[:, None].to(torch.float32), length[:, None].to(torch.float32)
    step = length / size
    target = torch.arange(size, device=start.device, dtype=torch.float32).expand(len(start), -1)
    target = torch.where(flip[:, None], size - 1 - target, target)
    center = (target + 0.5) * step
    pixel = torch.arange(source, device=start.device, dtype=torch.float32) - start
    inside = ((pixel >= 0) & (pixel < length)).to(torch.float32)
    distance = (pixel + 0.5)[:, None, :] - center[:, :, None]
    if antialias:
        distance /= step.clamp_min(1)[:, :, None]
    weights = _filter(distance, interpolation).mul_(inside[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))


@lru_cache(maxsize=16)
def _table(source: int, size: int, interpolation: Interpolation, antialias: bool) -> Tensor:
    """The matrices of every box of a short axis, by flip, then length, then start."""
    boxes = [(s, n) for n in range(1, source + 1) for s in range(source - n + 1)]
    start, length = torch.tensor(boxes).repeat(2, 1).unbind(1)
    flip = torch.arange(len(start)) >= len(boxes)
    return resampling_matrix(start, length, flip, source, size, interpolation, antialias)


def _matrix(
    start: Tensor,
    length: Tensor,
    flip: Tensor,
    source: int,
    size: int,
    interpolation: Interpolation,
    antialias: bool,
) -> Tensor:
    """`resampling_matrix`, from a table on a CPU if all boxes of the axis fit in one."""
    count = source * (source + 1) // 2
    # A table of fake tensors (torch.compile, tests) must not be cached.
    if type(start) is not Tensor or start.device.type != "cpu":
        count = _TABLE_FLOATS
    if 2 * count * size * source > _TABLE_FLOATS:
        return resampling_matrix(start, length, flip, source, size, interpolation, antialias)
    shorter = (length - 1) * (source + 1) - (length - 1) * length // 2
    row = shorter + start + flip * count
    return _table(source, size, interpolation, antialias).index_select(0, row)


def crop_planes(
    images: Tensor,
    boxes: Tensor,
    flip: Tensor,
    size: int,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """Crop, resize and flip by matrices, on any device.

    Antialiased uint8 images are clipped to their range after each of the two passes, as in PIL.
    Others are not clipped, as in torchvision and TensorFlow, so bicubic results may overshoot.

    Args:
        images: (B, C, H, W) uint8, or float in [0, 1].
        boxes: (B, 4) int64.
        flip: (B,) bool.
        size: S.
        interpolation: the filter.
        antialias: see `resampling_matrix`.

    Returns:
        planes (C, B, S, S) float32.
    """
    batch, channels, height, width = images.shape
    top, left, box_height, box_width = boxes.unbind(1)
    never = torch.zeros_like(flip)
    rows = _matrix(top, box_height, never, height, size, interpolation, antialias)
    columns = _matrix(left, box_width, flip, width, size, interpolation, antialias).mT
    clip = images.dtype == torch.uint8 and antialias and interpolation == "bicubic"
    planes = to_planes(images)
    out = torch.empty(channels, batch, size, size, device=images.device)
    for plane, result in zip(planes, out, strict=True):
        half = torch.bmm(plane, columns)
        torch.bmm(rows, half.clamp_(0, 1) if clip else half, out=result)
    return out.clamp_(0, 1) if clip else out


def crop_pixels(
    image: Tensor, box: list[int], flip: bool, size: int, interpolation: Interpolation
) -> Tensor:
    """Crop, resize (antialiased) and flip one image in its dtype, on a CPU.

    Shapes: image (C, H, W) uint8 or float -> (C, size, size).
    """
    top, left, height, width = box
    part = image[None, :, top : top + height, left : left + width]
    if image.dtype == torch.uint8:  # torch's kernel for bytes is fastest in channels_last
        part = part.contiguous(memory_format=torch.channels_last)
    out = F.interpolate(part, (size, size), mode=interpolation, antialias=True)[0]
    return out.flip(2) if flip else out


def center_crop(images: Tensor, size: int) -> Tensor:
    """Crop the central square. Shapes: (..., H, W) -> (..., size, size).

    Raises:
        ValueError: the images are smaller than `size`.
    """
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise ValueError(
            f"images must be at least {size} pixels (size), got {height} x {width}; set resize"
        )
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]
