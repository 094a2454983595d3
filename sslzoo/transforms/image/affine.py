"""Affine maps: a small rotation and shear of each sample about its center."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from sslzoo.random import Keys


def affine_(planes: Tensor, turn: Tensor, shear: Tensor) -> None:
    """Turn and shear about the center as torchvision's `affine` does, bilinearly, 0 outside.

    Args:
        planes: (C, B, H, H), changed in place.
        turn: (B,) radians, clockwise.
        shear: (B,) radians, of the vertical axis; it comes before the turn.
    """
    cos, sin, slant, zero = turn.cos(), turn.sin(), shear.tan(), torch.zeros_like(turn)
    # From a place in the result to its source: undo the turn, then the shear.
    rows = (cos - slant * sin, sin + slant * cos, zero, -sin, cos, zero)
    images = planes.transpose(0, 1)
    grid = affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    images.copy_(grid_sample(images, grid, "bilinear", "zeros", align_corners=False))


@final
class RandomAffine:
    """Turn and shear every sample.

    Args:
        degrees: the turn is uniform in [-degrees, degrees].
        shear: so is the shear, an angle in degrees.
    """

    def __init__(self, degrees: float, shear: float) -> None:
        if not 0 <= degrees <= 180 or not 0 <= shear < 90:
            raise ValueError(
                f"degrees wants 0 to 180 and shear 0 to below 90, got {degrees} and {shear}"
            )
        self.degrees = degrees
        self.shear = shear

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Turns and shears in radians, (B,) each."""
        unit = keys.uniform("angles", 2, low=-1.0)
        return unit[:, 0] * math.radians(self.degrees), unit[:, 1] * math.radians(self.shear)

    def apply(self, planes: Tensor, turn: Tensor, shear: Tensor) -> Tensor:
        """Shapes: planes (C, B, S, S), changed in place; turn, shear (B,)."""
        affine_(planes, turn, shear)
        return planes
