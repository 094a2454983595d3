"""Solarize: invert what is bright."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sslzoo.random import Keys
from sslzoo.transforms.image.layout import on_rows


def solarize_(planes: Tensor) -> None:
    """X below 1/2 stays, otherwise 1 - x: the smaller of the two. In place, any shape.

    For bytes / 255 this is PIL's threshold of 128: 127 / 255 lies below 1/2, 128 / 255 above.
    """
    torch.minimum(planes, 1 - planes, out=planes)


@final
class Solarize:
    """Solarize a sample at half its range: BYOL's 0.5 and PIL's 128 alike.

    Args:
        p: probability per sample.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Which samples, (B,) bool."""
        return (keys.bernoulli("apply", self.p),)

    def apply(self, planes: Tensor, chosen: Tensor) -> Tensor:
        """Shapes: planes (C, B, H, W), changed in place; chosen (B,) bool."""
        on_rows(planes, chosen, solarize_)
        return planes
