"""Translation by whole pixels, with the border mirrored."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sslzoo.checks import check_at_least, check_interval
from sslzoo.random import Keys


def translate(planes: Tensor, shift: Tensor) -> Tensor:
    """Shift each sample, with reflection padding (the border pixel is not repeated).

    Args:
        planes: (C, B, H, W).
        shift: (B, 2) int64, down and right, each smaller than that side.
    """
    for dim, size in ((2, planes.shape[2]), (3, planes.shape[3])):
        source = torch.arange(size, device=planes.device) - shift[:, dim - 2, None]  # (B, size)
        source = source.abs()
        source = size - 1 - (size - 1 - source).abs()
        shape = [1, len(shift), 1, 1]
        shape[dim] = size
        planes = planes.gather(dim, source.view(shape).expand_as(planes))
    return planes


@final
class RandomTranslate:
    """Shift samples by up to `pixels` in each direction.

    Args:
        pixels: shifts are uniform in -pixels, ..., pixels, independently per axis.
        p: probability per sample.
    """

    def __init__(self, pixels: int, p: float = 1.0) -> None:
        check_at_least("pixels", pixels, 0)
        check_interval("p", p, 0, 1)
        self.pixels = pixels
        self.p = p

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The shifts, (B, 2)."""
        shift = keys.integers("shift", 2 * self.pixels + 1, 2) - self.pixels
        return (shift * keys.bernoulli("whether", self.p)[:, None],)

    def apply(self, planes: Tensor, shift: Tensor) -> Tensor:
        """Shift planes (C, B, S, S) in place by shift (B, 2)."""
        return planes.copy_(translate(planes, shift))
