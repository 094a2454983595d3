"""Unit masks: random squares of pixels, each of several patches.

Xie et al., SimMIM, CVPR 2022, https://arxiv.org/abs/2111.09886, section 3.2.
Reference code: microsoft/SimMIM at d3e29bc, data/data_simmim.py.

Deviations:
    draws: keyed, so that a sample's mask does not depend on its batch; the code draws from numpy's
        generator in each worker.

Shapes: B samples, H x W pixels, a grid of h x w units, U units, L patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslzoo.checks import check_interval, check_whole
from sslzoo.random import Keys


@dataclass(frozen=True)
class UnitMasks:
    """Mask a fraction of the square units of an image, rounded up.

    Args:
        unit: side of a unit in pixels; 32 in the paper.
        ratio: fraction of the units that is masked; 0.6 in the paper.

    Raises:
        ValueError: the unit is below 1, or the ratio outside (0, 1).
    """

    unit: int = 32
    ratio: float = 0.6

    def __post_init__(self) -> None:
        check_whole("mask_unit", self.unit, 1)
        check_interval("mask_ratio", self.ratio, 0, 1, "()")

    def grid(self, size: tuple[int, int], patch_size: int) -> tuple[int, int]:
        """Units per side of images of `size` (height, width) pixels.

        Raises:
            ValueError: a unit is not a multiple of the patch, the image not a multiple of the unit,
                or all units would be masked.
        """
        if self.unit % patch_size:
            raise ValueError(
                f"mask_unit must be a multiple of the patch, {patch_size} pixels, got {self.unit}"
            )
        if size[0] % self.unit or size[1] % self.unit:
            raise ValueError(
                f"mask_unit must divide the images' {size[0]} x {size[1]} pixels, got {self.unit}"
            )
        rows, columns = size[0] // self.unit, size[1] // self.unit
        if self.count(rows * columns) == rows * columns:
            raise ValueError(
                f"mask_ratio must leave one of the {rows * columns} units of {self.unit} pixels, "
                f"got {self.ratio}; reduce it or mask_unit"
            )
        return rows, columns

    def count(self, units: int) -> int:
        """Number of masked units."""
        return math.ceil(units * self.ratio)

    @torch.no_grad()
    def __call__(self, keys: Keys, size: tuple[int, int], patch_size: int) -> Tensor:
        """Draw which patches are masked. (B, H / patch, W / patch) bool."""
        rows, columns = self.grid(size, patch_size)
        order = keys.permutation("units", rows * columns)  # (B, U)
        return self.patches(order, (rows, columns), self.unit // patch_size)

    def patches(self, order: Tensor, grid: tuple[int, int], repeat: int) -> Tensor:
        """The masked patches, given each sample's order of the units.

        Args:
            order: (B, U) int64 permutations, whose first units are masked.
            grid: (h, w) units per side.
            repeat: patches per side of a unit.

        Returns:
            (B, h * repeat, w * repeat) bool.
        """
        units = torch.zeros_like(order, dtype=torch.bool)
        units.scatter_(1, order[:, : self.count(order.shape[1])], True)
        grid_of_units = units.unflatten(1, grid)
        return grid_of_units.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
