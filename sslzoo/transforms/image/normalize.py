"""Normalization by a mean and standard deviation per channel, and clipping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sslzoo.random import Keys
from sslzoo.transforms.image.layout import Op

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SWAV_STD = (0.228, 0.224, 0.225)  # the official code's first entry differs from ImageNet's
INSTDISC_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
INSTDISC_CIFAR_STD = (0.2023, 0.1994, 0.2010)
AMDIM_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
AMDIM_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
GIM_MEAN, GIM_STD = (0.4120,) * 3, (0.2570,) * 3  # Greedy InfoMax's, of gray STL-10


def normalize_(planes: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute (x - mean) / std in place. Shapes: planes (C, ...), mean (C,), std (C,)."""
    if not len(planes) == len(mean) == len(std):
        raise ValueError(
            f"mean and std must have {len(planes)} numbers, one per channel, got {tuple(mean)} and "
            f"{tuple(std)}"
        )
    for plane, center, width in zip(planes, mean, std, strict=True):
        plane.sub_(center).div_(width)
    return planes


def check_mean_std(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Refuse a mean without a standard deviation, and the reverse.

    Raises:
        ValueError: only one of the two is None.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together, got {mean} and {std}")


def normalize_ops(mean: Sequence[float] | None, std: Sequence[float] | None) -> list[Op]:
    """`Normalize` as a list, empty without mean and std."""
    check_mean_std(mean, std)
    return [] if mean is None or std is None else [Normalize(mean, std)]


@final
class Normalize:
    """Normalize every sample.

    Args:
        mean: mean per channel, for images in [0, 1].
        std: standard deviation per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """No random parameters."""
        return ()

    def apply(self, planes: Tensor) -> Tensor:
        """Normalize planes (C, B, H, W) in place."""
        return normalize_(planes, self.mean, self.std)


@final
class Clip:
    """Clip every sample to [0, 1]."""

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """No random parameters."""
        return ()

    def apply(self, planes: Tensor) -> Tensor:
        """Clip planes (C, B, H, W) in place."""
        return torch.clamp_(planes, 0, 1)
