"""Solarization: invert bright pixels."""

from __future__ import annotations

from functools import partial
from typing import final

import torch
from torch import Tensor

from sslzoo.checks import check_interval
from sslzoo.random import Keys
from sslzoo.transforms.image.layout import on_rows


def solarize_(planes: Tensor, threshold: float = 0.5) -> None:
    """Invert values of at least the threshold in place; at 1/2 this is min(x, 1 - x).

    For bytes / 255, 1/2 is PIL's threshold of 128, since 127 / 255 < 1/2 < 128 / 255.
    """
    inverse = 1 - planes
    if threshold == 0.5:
        torch.minimum(planes, inverse, out=planes)
    else:
        torch.where(planes < threshold, planes, inverse, out=planes)


@final
class Solarize:
    """Solarize samples: invert the values of at least a threshold.

    Args:
        p: probability per sample.
        threshold: in 0..1, the range of the pixels; 1/2 is BYOL's and PIL's 128. PIL's t is
            (t - 1/2) / 255.

    Raises:
        ValueError: for a threshold outside [0, 1].
    """

    def __init__(self, p: float, threshold: float = 0.5) -> None:
        check_interval("threshold", threshold, 0, 1)
        self.p, self.threshold = p, threshold

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The chosen samples, (B,) bool."""
        return (keys.bernoulli("apply", self.p),)

    def apply(self, planes: Tensor, chosen: Tensor) -> Tensor:
        """Solarize the chosen samples (B,) of planes (C, B, H, W) in place."""
        on_rows(planes, chosen, partial(solarize_, threshold=self.threshold))
        return planes
