"""Solarization: invert bright pixels."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sslzoo.random import Keys
from sslzoo.transforms.image.layout import on_rows


def solarize_(planes: Tensor) -> None:
    """Invert values of at least 1/2, which is min(x, 1 - x), in place.

    For bytes / 255 this is PIL's threshold of 128, since 127 / 255 < 1/2 < 128 / 255.
    """
    torch.minimum(planes, 1 - planes, out=planes)


@final
class Solarize:
    """Solarize samples at 1/2 of the range, which is BYOL's 0.5 and PIL's 128.

    Args:
        p: probability per sample.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The chosen samples, (B,) bool."""
        return (keys.bernoulli("apply", self.p),)

    def apply(self, planes: Tensor, chosen: Tensor) -> Tensor:
        """Solarize the chosen samples (B,) of planes (C, B, H, W) in place."""
        on_rows(planes, chosen, solarize_)
        return planes
