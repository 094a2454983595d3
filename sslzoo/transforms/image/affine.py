"""Affine maps: a random rotation and shear of each sample about its center."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from sslzoo.checks import check_interval
from sslzoo.random import Keys


def affine_(planes: Tensor, angle: Tensor, shear: Tensor) -> None:
    """Shear and rotate about the center, as torchvision's bilinear `affine` does; 0 outside.

    Args:
        planes: (C, B, H, H), changed in place.
        angle: (B,) clockwise rotation in radians.
        shear: (B,) shear of the vertical axis in radians, before the rotation.
    """
    cos, sin, slant, zero = angle.cos(), angle.sin(), shear.tan(), torch.zeros_like(angle)
    # Maps a position in the result to its source: inverse rotation, then inverse shear.
    rows = (cos - slant * sin, sin + slant * cos, zero, -sin, cos, zero)
    images = planes.transpose(0, 1)
    grid = affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    images.copy_(grid_sample(images, grid, "bilinear", "zeros", align_corners=False))


@final
class RandomAffine:
    """Rotate and shear every sample.

    Args:
        degrees: the rotation is uniform in [-degrees, degrees].
        shear: the shear angle is uniform in [-shear, shear] degrees.
    """

    def __init__(self, degrees: float, shear: float) -> None:
        check_interval("degrees", degrees, 0, 180)
        check_interval("shear", shear, 0, 90, "[)")
        self.degrees = degrees
        self.shear = shear

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Rotations and shears in radians, (B,) each."""
        unit = keys.uniform("angles", 2, low=-1.0)
        return unit[:, 0] * math.radians(self.degrees), unit[:, 1] * math.radians(self.shear)

    def apply(self, planes: Tensor, angle: Tensor, shear: Tensor) -> Tensor:
        """Rotate and shear planes (C, B, S, S) in place; angle and shear (B,)."""
        affine_(planes, angle, shear)
        return planes
