"""Translation: a shift by whole pixels, mirrored at the border."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sslzoo.random import Keys


def translate(planes: Tensor, shift: Tensor) -> Tensor:
    """Shift each sample; what comes in is the mirror image, the border not repeated.

    Args:
        planes: (C, B, H, W).
        shift: (B, 2) int64, down and right, each smaller than that side.
    """
    for dim, size in ((2, planes.shape[2]), (3, planes.shape[3])):
        places = torch.arange(size, device=planes.device) - shift[:, dim - 2, None]  # (B, size)
        places = places.abs()
        places = size - 1 - (size - 1 - places).abs()
        shape = [1, len(shift), 1, 1]
        shape[dim] = size
        planes = planes.gather(dim, places.view(shape).expand_as(planes))
    return planes


@final
class RandomTranslate:
    """Shift some samples by up to `pixels` in each direction.

    Args:
        pixels: shifts are uniform in -pixels, ..., pixels, for each axis by itself.
        p: probability of shifting a sample.
    """

    def __init__(self, pixels: int, p: float = 1.0) -> None:
        if pixels < 0 or not 0 <= p <= 1:
            raise ValueError(f"pixels wants 0 or more and p 0 to 1, got {pixels} and {p}")
        self.pixels = pixels
        self.p = p

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Shifts (B, 2)."""
        shift = keys.integers("shift", 2 * self.pixels + 1, 2) - self.pixels
        return (shift * keys.bernoulli("whether", self.p)[:, None],)

    def apply(self, planes: Tensor, shift: Tensor) -> Tensor:
        """Shapes: planes (C, B, S, S), changed in place; shift (B, 2)."""
        return planes.copy_(translate(planes, shift))
