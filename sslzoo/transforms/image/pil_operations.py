"""PIL's operations on bytes, batched: each sample gets its own operation and argument.

Equal to Pillow's to the byte, as timm's RandAugment calls them, so the arithmetic follows
Pillow's C code: doubles in geometry and histograms, floats in blends, and both are cut off, not
rounded. What depends on one byte alone is a table of 256 entries for each image and channel; what
blends with a changed image, and what moves pixels, are families of their own.

Shapes: pixels (C, B, H, W) uint8 with C = 3, changed in place; operation (B,) int64 and argument
(B,) float64, one of each for a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from sslzoo.transforms.image.layout import on_rows, per_sample

_ROWS = 32  # samples at a time: an accelerator holds a dozen float64 copies of their pixels


class Operation(IntEnum):
    """Operations in the order of timm's RandAugment; arguments are those of its functions."""

    NONE = -1
    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    ROTATE = 3  # degrees, counter-clockwise
    POSTERIZE = 4  # bits that are kept
    SOLARIZE = 5  # first byte that is inverted
    SOLARIZE_ADD = 6  # what is added to bytes below 128
    COLOR = 7  # factor: 0 is gray, 1 changes nothing
    CONTRAST = 8  # factor: 0 is the mean gray
    BRIGHTNESS = 9  # factor: 0 is black
    SHARPNESS = 10  # factor: 0 is smoothed
    SHEAR_X = 11  # pixels to the left for each row
    SHEAR_Y = 12  # pixels up for each column
    TRANSLATE_X = 13  # to the left, as a share of the width
    TRANSLATE_Y = 14  # up, as a share of the height


_BLENDS = (Operation.COLOR, Operation.SHARPNESS)
_MOVES = (
    Operation.ROTATE,
    Operation.SHEAR_X,
    Operation.SHEAR_Y,
    Operation.TRANSLATE_X,
    Operation.TRANSLATE_Y,
)
_TABLES = tuple(x for x in Operation if x not in (Operation.NONE, *_BLENDS, *_MOVES))


def operate_(pixels: Tensor, operation: Tensor, argument: Tensor, fill: Sequence[int]) -> None:
    """Apply to each sample its operation.

    Args:
        pixels: (3, B, H, W) uint8, changed in place.
        operation: (B,) int64, members of `Operation`.
        argument: (B,) float64.
        fill: bytes of red, green and blue where no pixel has been.
    """

    def move_(part: Tensor, which: Tensor, how: Tensor) -> None:
        affine_(part, matrices(which, how, part.shape[2], part.shape[3]), fill)

    for start in range(0, pixels.shape[1], _ROWS):
        rows = slice(start, start + _ROWS)
        part, drawn = pixels[:, rows], (operation[rows], argument[rows])
        for family, change in ((_TABLES, look_up_), (_BLENDS, blend_), (_MOVES, move_)):
            on_rows(part, _is_one_of(drawn[0], family), change, *drawn)


def _is_one_of(operation: Tensor, family: Sequence[Operation]) -> Tensor:
    chosen = torch.zeros_like(operation, dtype=torch.bool)
    for member in family:
        chosen |= operation == member
    return chosen


def luma(pixels: Tensor) -> Tensor:
    """PIL's gray, ITU-R 601 in sixteen bits. Shapes: (3, B, H, W) uint8 -> (B, H, W) int32."""
    red, green, blue = pixels.int()
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blended(base: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """From `base` to `other` and beyond, in float32 and cut off: PIL's `blend`, as floats."""
    base = base.float()
    return (base + factor.float() * (other - base)).clamp(0, 255).floor()


def look_up_(pixels: Tensor, operation: Tensor, argument: Tensor) -> None:
    """The operations that are a table."""
    table = tables(pixels, operation, argument)
    pixels.copy_(table.gather(2, pixels.flatten(2).long()).view_as(pixels))


def tables(pixels: Tensor, operation: Tensor, argument: Tensor) -> Tensor:
    """What each byte becomes. Returns (3, B, 256) uint8; identity for what is no table."""
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
    """The smallest and the largest byte that occurs. Shapes: (3, B, 256) -> (3, B, 1) each."""
    found = counts > 0
    low = torch.where(found, byte, 255).amin(2, keepdim=True)
    return low, torch.where(found, byte, 0).amax(2, keepdim=True)


def _stretched(counts: Tensor, byte: Tensor) -> Tensor:
    """`ImageOps.autocontrast`'s table: from the bytes that occur to 0 to 255."""
    low, high = _ends(counts, byte)
    span = (high - low).clamp_min(1).double()
    scale = torch.full_like(span, 255) / span  # 255 / span would multiply by a reciprocal
    table = (byte * scale + -low * scale).clamp(0, 255).long()
    return torch.where(high > low, table, byte)


def _equalized(counts: Tensor, byte: Tensor) -> Tensor:
    """`ImageOps.equalize`'s table: the share of pixels below a byte."""
    below = counts.cumsum(2) - counts
    last = counts.gather(2, _ends(counts, byte)[1])
    step = (counts.sum(2, keepdim=True) - last) // 255
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    return torch.where(step > 0, table, byte)


def blend_(pixels: Tensor, operation: Tensor, argument: Tensor) -> None:
    """`ImageEnhance.Color` (from the gray image) and `Sharpness` (from the smoothed one)."""
    base = torch.where(per_sample(operation == Operation.COLOR), luma(pixels), smoothed(pixels))
    pixels.copy_(_blended(base, pixels, per_sample(argument)))


def smoothed(pixels: Tensor) -> Tensor:
    """`ImageFilter.SMOOTH`, the border left as it is. Shapes: (3, B, H, W) uint8 -> int32."""
    whole = pixels.int()
    rows = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    inner = whole[..., 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    inner.copy_((2 * total + 13) // 26)  # a thirteenth, rounded; no sum is a tie
    return whole


def matrices(operation: Tensor, argument: Tensor, height: int, width: int) -> Tensor:
    """From a place in the result to its source, (B, 6) float64: x = a x + b y + c, y = d x + ...

    Identity for what moves nothing. The turn is about the center. `Image.rotate` rounds its sine
    and cosine to 15 decimals, which no byte has shown.
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
    """`Image.transform` with an affine map and the bicubic filter (a = -1, not antialiased).

    Args:
        pixels: (3, B, H, W) uint8, changed in place.
        matrix: (B, 6) float64, see `matrices`.
        fill: bytes of red, green and blue where the source lies outside.
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
        places = [start + (columns + column).clamp(0, width - 1) for column in range(-1, 3)]
        lines.append(_cubic([flat.gather(2, p.expand_as(flat)).double() for p in places], part_x))
    moved = _cubic(lines, part_y).clamp(0, 255).view(pixels.shape)
    for plane, values, value in zip(pixels, moved, fill, strict=True):
        plane.copy_(torch.where(inside, values, value))


def _cubic(v: list[Tensor], t: Tensor) -> Tensor:
    """Between the second and the third of four values, in the order of Pillow's additions."""
    linear = v[2] - v[0]
    square = 2 * (v[0] - v[1]) + v[2] - v[3]
    cube = v[1] - v[0] - v[2] + v[3]
    return v[1] + t * (linear + t * (square + t * cube))
