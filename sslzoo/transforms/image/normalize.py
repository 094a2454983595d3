"""Normalize: subtract a mean and divide by a deviation, channel by channel; and clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sslzoo.random import Keys

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SWAV_STD = (0.228, 0.224, 0.225)  # the official code's slip in the first entry
INSTDISC_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
INSTDISC_CIFAR_STD = (0.2023, 0.1994, 0.2010)
AMDIM_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
AMDIM_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
GIM_MEAN, GIM_STD = (0.4120,) * 3, (0.2570,) * 3  # Greedy InfoMax's, of gray STL-10


def normalize_(planes: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std, in place. Shapes: planes (C, ...); mean and std hold C numbers."""
    if not len(planes) == len(mean) == len(std):
        raise ValueError(f"{len(planes)} channels, but mean {tuple(mean)} and std {tuple(std)}")
    for plane, center, width in zip(planes, mean, std, strict=True):
        plane.sub_(center).div_(width)
    return planes


@final
class Normalize:
    """Normalize every sample.

    Args:
        mean: one number a channel, for images in [0, 1].
        std: standard deviation per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Nothing is random."""
        return ()

    def apply(self, planes: Tensor) -> Tensor:
        """Shapes: planes (C, B, H, W), changed in place."""
        return normalize_(planes, self.mean, self.std)


@final
class Clip:
    """Clip every sample to [0, 1]."""

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Nothing is random."""
        return ()

    def apply(self, planes: Tensor) -> Tensor:
        """Shapes: planes (C, B, H, W), changed in place."""
        return torch.clamp_(planes, 0, 1)
