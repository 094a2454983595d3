"""Random erasing: replace a rectangle of some samples by noise.

Zhong, Zheng, Kang, Li and Yang, Random Erasing Data Augmentation, AAAI 2020,
https://arxiv.org/abs/1708.04896. This is timm's mode "pixel" with one rectangle.
timm draws from the process's generators, image by image; here every draw is keyed, so that views do
not depend on ranks, workers or a resume, and a batch is one call.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from sslzoo.checks import check_interval
from sslzoo.random import Keys
from sslzoo.transforms.image.layout import on_rows

_ATTEMPTS = 10  # timm's
_ROWS = 32  # samples per chunk, since an accelerator makes noise for all of them


def rectangles(
    unit: Tensor, corner: Tensor, area: tuple[float, float], aspect: float, height: int, width: int
) -> Tensor:
    """The first drawn rectangle per sample that is smaller than the image on both sides.

    Args:
        unit: (B, n, 2) draws in [0, 1) for the area and aspect of each attempt.
        corner: (B, 2) draws in [0, 1) for the position.
        area: range of the rectangle's fraction of the image area.
        aspect: smallest height / width; the largest is 1 / aspect, uniform in the logarithm.
        height: height of the image.
        width: width of the image.

    Returns:
        (B, 4) int64: top, left, height, width; height and width are 0 if no attempt fits.
    """
    unit, corner = unit.double(), corner.double()  # so that devices round alike
    low, high = area
    area_of = (low + (high - low) * unit[..., 0]) * (height * width)
    span = math.log(1 / aspect) - math.log(aspect)
    aspect_of = (math.log(aspect) + span * unit[..., 1]).exp()
    heights, widths = (area_of * aspect_of).sqrt().round(), (area_of / aspect_of).sqrt().round()
    fits = (heights < height) & (widths < width)  # (B, n)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    chosen = [x.gather(1, first)[:, 0] * fits.any(1) for x in (heights, widths)]
    room = torch.stack((height - chosen[0], width - chosen[1]), dim=1)
    top_left = (corner * (room + 1)).floor()
    return torch.stack((*top_left.unbind(1), *chosen), dim=1).long()


def erase_(planes: Tensor, box: Tensor, key: Tensor) -> None:
    """Replace each sample's rectangle by standard normal noise per channel and pixel.

    Args:
        planes: (C, B, H, W), changed in place.
        box: (B, 4) int64, see `rectangles`.
        key: (B,) int64 key of the noise.
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
    """Erase a rectangle of some samples; use it after the normalization.

    Args:
        p: probability per sample.
        area: range of the rectangle's fraction of the image area.
        aspect: smallest height / width; the largest is 1 / aspect.
    """

    def __init__(
        self, p: float = 0.25, area: tuple[float, float] = (0.02, 1 / 3), aspect: float = 0.3
    ) -> None:
        check_interval("p", p, 0, 1)
        check_interval("aspect", aspect, 0, 1, "(]")
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"area must have 0 < low <= high <= 1, got {tuple(area)}")
        self.p = p
        self.area = area
        self.aspect = aspect

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Chosen samples (B,), attempts (B, 10, 2), positions (B, 2), and noise keys (B,)."""
        unit, corner = keys.uniform("box", _ATTEMPTS, 2), keys.uniform("place", 2)
        return keys.bernoulli("apply", self.p), unit, corner, keys.key

    def apply(
        self, planes: Tensor, chosen: Tensor, unit: Tensor, corner: Tensor, key: Tensor
    ) -> Tensor:
        """Erase rectangles of planes (C, B, H, W) in place, with the draws of `draw`."""
        box = rectangles(unit, corner, self.area, self.aspect, planes.shape[2], planes.shape[3])
        for start in range(0, planes.shape[1], _ROWS):
            rows = slice(start, start + _ROWS)
            on_rows(planes[:, rows], chosen[rows], erase_, box[rows], key[rows])
        return planes
