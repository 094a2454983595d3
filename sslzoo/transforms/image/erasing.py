"""Random erasing: a rectangle of noise over some samples.

Zhong, Zheng, Kang, Li and Yang, Random Erasing Data Augmentation, AAAI 2020,
https://arxiv.org/abs/1708.04896; as timm has it, mode "pixel", one rectangle.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from sslzoo.random import Keys
from sslzoo.transforms.image.layout import on_rows

_ATTEMPTS = 10  # timm's
_ROWS = 32  # samples at a time: an accelerator makes noise for all of them


def rectangles(
    unit: Tensor, place: Tensor, area: tuple[float, float], aspect: float, height: int, width: int
) -> Tensor:
    """The first drawn rectangle that is smaller than the image in both directions.

    Args:
        unit: (B, n, 2) in [0, 1): area and aspect of each attempt.
        place: (B, 2) in [0, 1).
        area: range of the rectangle's share of the image.
        aspect: smallest height / width, the largest is 1 / aspect; uniform in its logarithm.
        height: of the image.
        width: likewise.

    Returns:
        (B, 4) int64: top, left, height, width; of no height and width where no attempt fits.
    """
    unit, place = unit.double(), place.double()  # a rounding must not differ by device
    low, high = area
    area_of = (low + (high - low) * unit[..., 0]) * (height * width)
    span = math.log(1 / aspect) - math.log(aspect)
    aspect_of = (math.log(aspect) + span * unit[..., 1]).exp()
    heights, widths = (area_of * aspect_of).sqrt().round(), (area_of / aspect_of).sqrt().round()
    fits = (heights < height) & (widths < width)  # (B, n)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    chosen = [x.gather(1, first)[:, 0] * fits.any(1) for x in (heights, widths)]
    room = torch.stack((height - chosen[0], width - chosen[1]), dim=1)
    corner = (place * (room + 1)).floor()
    return torch.stack((*corner.unbind(1), *chosen), dim=1).long()


def erase_(planes: Tensor, box: Tensor, key: Tensor) -> None:
    """Put standard normal noise, a number a channel and pixel, into each sample's rectangle.

    Args:
        planes: (C, B, H, W), changed in place.
        box: (B, 4) int64, see `rectangles`.
        key: (B,) int64, of the noise.
    """
    channels, _, height, width = planes.shape
    top, left, tall, wide = box[..., None, None].unbind(1)  # (B, 1, 1) each
    row = torch.arange(height, device=box.device)[None, :, None] - top
    column = torch.arange(width, device=box.device)[None, None, :] - left
    inside = (row >= 0) & (row < tall) & (column >= 0) & (column < wide)  # (B, H, W)
    noise = Keys(key).normal("noise", channels, height, width).transpose(0, 1)
    planes.copy_(torch.where(inside, noise, planes))


@final
class RandomErasing:
    """Erase a rectangle of some samples; it follows the normalization, whose scale noise has.

    Args:
        p: probability per sample.
        area: range of the rectangle's share of the image.
        aspect: smallest height / width; the largest is 1 / aspect.
    """

    def __init__(
        self, p: float = 0.25, area: tuple[float, float] = (0.02, 1 / 3), aspect: float = 0.3
    ) -> None:
        if not 0 <= p <= 1 or not 0 < area[0] <= area[1] <= 1 or not 0 < aspect <= 1:
            raise ValueError(
                "p from 0 to 1, area 0 < low <= high <= 1 and aspect above 0 to 1 wanted, got "
                f"{p}, {tuple(area)} and {aspect}"
            )
        self.p = p
        self.area = area
        self.aspect = aspect

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Which samples (B,), attempts (B, 10, 2), places (B, 2) and keys of the noise (B,)."""
        unit, place = keys.uniform("box", _ATTEMPTS, 2), keys.uniform("place", 2)
        return keys.bernoulli("apply", self.p), unit, place, keys.key

    def apply(
        self, planes: Tensor, chosen: Tensor, unit: Tensor, place: Tensor, key: Tensor
    ) -> Tensor:
        """Shapes: planes (C, B, H, W), changed in place; the rest as drawn."""
        box = rectangles(unit, place, self.area, self.aspect, planes.shape[2], planes.shape[3])
        for start in range(0, planes.shape[1], _ROWS):
            rows = slice(start, start + _ROWS)
            on_rows(planes[:, rows], chosen[rows], erase_, box[rows], key[rows])
        return planes
