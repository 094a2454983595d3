"""PIL's operations on bytes, batched, with one operation and one argument per sample.

Results equal Pillow's bit for bit, as called by timm's RandAugment. So the arithmetic follows
Pillow's C code: doubles in geometry and histograms, floats in blends, both truncated, not rounded.
There are three kinds of operation: point operations are a table of 256 entries per image and
channel, blends mix with a changed image, and affine operations move pixels.

Shapes: pixels (C, B, H, W) uint8 with C = 3, changed in place; operation (B,) int64; argument (B,)
float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from sslzoo.transforms.image.layout import on_rows, per_sample

_ROWS = 32  # samples per chunk, since an accelerator holds a dozen float64 copies of their pixels


class Operation(IntEnum):
    """Operations in the order of timm's RandAugment, with the arguments of its functions."""

    NONE = -1
    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    ROTATE = 3  # degrees, counter-clockwise
    POSTERIZE = 4  # bits to keep
    SOLARIZE = 5  # smallest inverted byte
    SOLARIZE_ADD = 6  # value added to bytes below 128
    COLOR = 7  # factor: 0 is gray, 1 is the image
    CONTRAST = 8  # factor: 0 is the mean gray, 1 is the image
    BRIGHTNESS = 9  # factor: 0 is black, 1 is the image
    SHARPNESS = 10  # factor: 0 is smoothed, 1 is the image
    SHEAR_X = 11  # pixels to the left per row
    SHEAR_Y = 12  # pixels up per column
    TRANSLATE_X = 13  # to the left, as a fraction of the width
    TRANSLATE_Y = 14  # up, as a fraction of the height


_BLENDS = (Operation.COLOR, Operation.SHARPNESS)
_AFFINE = (
    Operation.ROTATE,
    Operation.SHEAR_X,
    Operation.SHEAR_Y,
    Operation.TRANSLATE_X,
    Operation.TRANSLATE_Y,
)
_POINT = tuple(x for x in Operation if x not in (Operation.NONE, *_BLENDS, *_AFFINE))


def operate_(pixels: Tensor, operation: Tensor, argument: Tensor, fill: Sequence[int]) -> None:
    """Apply each sample's operation.

    Args:
        pixels: (3, B, H, W) uint8, changed in place.
        operation: (B,) int64, members of `Operation`.
        argument: (B,) float64.
        fill: red, green and blue bytes outside the source image.
    """

    def move_(part: Tensor, operation: Tensor, argument: Tensor) -> None:
        affine_(part, matrices(operation, argument, part.shape[2], part.shape[3]), fill)

    for start in range(0, pixels.shape[1], _ROWS):
        rows = slice(start, start + _ROWS)
        part, drawn = pixels[:, rows], (operation[rows], argument[rows])
        for kind, change in ((_POINT, look_up_), (_BLENDS, blend_), (_AFFINE, move_)):
            on_rows(part, _is_one_of(drawn[0], kind), change, *drawn)


def _is_one_of(operation: Tensor, kind: Sequence[Operation]) -> Tensor:
    chosen = torch.zeros_like(operation, dtype=torch.bool)
    for member in kind:
        chosen |= operation == member
    return chosen


def luma(pixels: Tensor) -> Tensor:
    """PIL's gray value, ITU-R 601 in 16 bits. Shapes: (3, B, H, W) uint8 -> (B, H, W) int32."""
    red, green, blue = pixels.int()
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blended(base: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """PIL's `blend`: interpolate or extrapolate from `base` to `other` in float32, truncated."""
    base = base.float()
    return (base + factor.float() * (other - base)).clamp(0, 255).floor()


def look_up_(pixels: Tensor, operation: Tensor, argument: Tensor) -> None:
    """Apply the point operations."""
    table = tables(pixels, operation, argument)
    pixels.copy_(table.gather(2, pixels.flatten(2).long()).view_as(pixels))


def tables(pixels: Tensor, operation: Tensor, argument: Tensor) -> Tensor:
    """The result per byte, (3, B, 256) uint8; identity for other kinds of operation."""
    byte = torch.arange(256, device=pixels.device)
    number, factor = argument.long()[:, None], argument[:, None]
    gray = luma(pixels).flatten(1)  # (B, HW)
    mean = (2 * gray.sum(1, keepdim=True) + gray.shape[1]) // (2 * gray.shape[1])
    dropped = 8 - number.clamp(0, 8)
    flat = pixels.flatten(2).long()
    counts = flat.new_zeros(*flat.shape[:2], 256).scatter_add_(2, flat, torch.ones_like(flat))
    made = {
        Operation.AUTO_CONTRAST: _stretched(counts, byte),
        Operation.EQUALIZE: _equalized(counts, byte),
        Operation.INVERT: 255 - byte,
        Operation.POSTERIZE: (byte >> dropped) << dropped,
        Operation.SOLARIZE: torch.where(byte < number, byte, 255 - byte),
        Operation.SOLARIZE_ADD: torch.where(byte < 128, byte + number, byte).clamp_max(255),
        Operation.CONTRAST: _blended(mean, byte, factor).long(),
        Operation.BRIGHTNESS: _blended(torch.zeros_like(mean), byte, factor).long(),
    }
    table = byte.expand_as(counts)
    for name, values in made.items():
        table = torch.where((operation == name)[:, None], values, table)
    return table.to(torch.uint8)


def _ends(counts: Tensor, byte: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest byte present. Shapes: (3, B, 256) -> (3, B, 1) each."""
    found = counts > 0
    low = torch.where(found, byte, 255).amin(2, keepdim=True)
    return low, torch.where(found, byte, 0).amax(2, keepdim=True)


def _stretched(counts: Tensor, byte: Tensor) -> Tensor:
    """The table of `ImageOps.autocontrast`: the range of the present bytes to 0..255."""
    low, high = _ends(counts, byte)
    span = (high - low).clamp_min(1).double()
    scale = torch.full_like(span, 255) / span  # 255 / span would multiply by a reciprocal
    table = (byte * scale + -low * scale).clamp(0, 255).long()
    return torch.where(high > low, table, byte)


def _equalized(counts: Tensor, byte: Tensor) -> Tensor:
    """The table of `ImageOps.equalize`: the fraction of pixels below a byte."""
    below = counts.cumsum(2) - counts
    last = counts.gather(2, _ends(counts, byte)[1])
    step = (counts.sum(2, keepdim=True) - last) // 255
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    return torch.where(step > 0, table, byte)


def blend_(pixels: Tensor, operation: Tensor, argument: Tensor) -> None:
    """Apply `ImageEnhance.Color` (from the gray image) or `Sharpness` (from the smoothed one)."""
    base = torch.where(per_sample(operation == Operation.COLOR), luma(pixels), smoothed(pixels))
    pixels.copy_(_blended(base, pixels, per_sample(argument)))


def smoothed(pixels: Tensor) -> Tensor:
    """`ImageFilter.SMOOTH`, with the border unchanged. Shapes: (3, B, H, W) uint8 -> int32."""
    whole = pixels.int()
    rows = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    inner = whole[..., 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    inner.copy_((2 * total + 13) // 26)  # total / 13, rounded; there are no ties
    return whole


def matrices(operation: Tensor, argument: Tensor, height: int, width: int) -> Tensor:
    """Affine maps from a position in the result to its source, (B, 6) float64.

    The source is (a x + b y + c, d x + e y + f). Other kinds of operation get the identity. The
    rotation is about the center. `Image.rotate` rounds its sine and cosine to 15 decimals, which
    changed no byte in any test.
    """

    def where(name: Operation, value: Tensor, other: Tensor | float) -> Tensor:
        return torch.where(operation == name, value, other)

    angle = -(torch.remainder(argument, 360.0) * (math.pi / 180))
    cos, sin = angle.cos(), angle.sin()
    half_x, half_y = width / 2, height / 2
    turn_x = cos * -half_x + sin * -half_y + half_x
    turn_y = -sin * -half_x + cos * -half_y + half_y
    a, e = (where(Operation.ROTATE, cos, 1.0) for _ in range(2))
    b = where(Operation.ROTATE, sin, where(Operation.SHEAR_X, argument, 0.0))
    d = where(Operation.ROTATE, -sin, where(Operation.SHEAR_Y, argument, 0.0))
    right, down = argument * width, argument * height
    c = where(Operation.ROTATE, turn_x, where(Operation.TRANSLATE_X, right, 0.0))
    f = where(Operation.ROTATE, turn_y, where(Operation.TRANSLATE_Y, down, 0.0))
    return torch.stack((a, b, c, d, e, f), dim=1)


def affine_(pixels: Tensor, matrix: Tensor, fill: Sequence[int]) -> None:
    """Apply `Image.transform` with an affine map and the bicubic filter (a = -1, no antialias).

    Args:
        pixels: (3, B, H, W) uint8, changed in place.
        matrix: (B, 6) float64, see `matrices`.
        fill: red, green and blue bytes outside the source image.
    """
    height, width = pixels.shape[2:]
    down = torch.arange(height, device=pixels.device).double()[None, :, None] + 0.5
    right = torch.arange(width, device=pixels.device).double()[None, None, :] + 0.5
    a, b, c, d, e, f = matrix[..., None, None].unbind(1)  # (B, 1, 1) each
    x, y = a * right + b * down + c, d * right + e * down + f  # (B, H, W)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = (x - 0.5).floor(), (y - 0.5).floor()
    part_x, part_y = (x - 0.5 - left).flatten(1), (y - 0.5 - top).flatten(1)
    columns, rows = left.long().flatten(1), top.long().flatten(1)
    flat = pixels.flatten(2)
    lines = []
    for row in range(-1, 3):
        start = (rows + row).clamp(0, height - 1) * width
        taps = [start + (columns + column).clamp(0, width - 1) for column in range(-1, 3)]
        lines.append(_cubic([flat.gather(2, p.expand_as(flat)).double() for p in taps], part_x))
    moved = _cubic(lines, part_y).clamp(0, 255).view(pixels.shape)
    for plane, values, value in zip(pixels, moved, fill, strict=True):
        plane.copy_(torch.where(inside, values, value))


def _cubic(v: list[Tensor], t: Tensor) -> Tensor:
    """Interpolate between the second and third of four values, in Pillow's order of additions."""
    linear = v[2] - v[0]
    square = 2 * (v[0] - v[1]) + v[2] - v[3]
    cube = v[1] - v[0] - v[2] + v[3]
    return v[1] + t * (linear + t * (square + t * cube))
