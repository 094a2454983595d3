"""Elastic distortion: a smooth random displacement of each sample's pixels.

Simard et al., Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis,
ICDAR 2003. They smooth a field of independent pixels by a Gaussian; here a coarse grid of
independent displacements is interpolated by cubic splines, which is as smooth and cheaper.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from sslzoo.checks import check_at_least
from sslzoo.random import Keys


def displace_(planes: Tensor, field: Tensor) -> None:
    """Read every pixel at its position plus a displacement, bilinearly; 0 outside.

    Args:
        planes: (C, B, H, W), changed in place.
        field: (B, 2, G, G) displacements to the right and down, in halves of a side, at G x G
            positions from corner to corner.
    """
    height, width = planes.shape[2:]
    dense = interpolate(field, (height, width), mode="bicubic", align_corners=True)
    y, x = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=planes.device) for n in (height, width))
    own = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    images = planes.transpose(0, 1)
    grid = (own + dense.permute(0, 2, 3, 1)).to(planes.dtype)
    images.copy_(grid_sample(images, grid, "bilinear", "zeros", align_corners=False))


@final
class RandomElastic:
    """Distort every sample smoothly.

    Args:
        strength: standard deviation of the displacements, as a fraction of the side.
        grid: positions per side at which displacements are independent; fewer are smoother.
    """

    def __init__(self, strength: float = 0.03, grid: int = 5) -> None:
        check_at_least("strength", strength, 0)
        check_at_least("grid", grid, 2)
        self.strength = strength
        self.grid = grid

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Displacements in halves of a side, (B, 2, grid, grid)."""
        return (keys.normal("displacement", 2, self.grid, self.grid) * (2 * self.strength),)

    def apply(self, planes: Tensor, field: Tensor) -> Tensor:
        """Distort planes (C, B, S, S) in place by a field (B, 2, grid, grid)."""
        displace_(planes, field)
        return planes
