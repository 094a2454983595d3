"""Displace: rotate and shift the images of an evaluation, the same way in every run."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from sslzoo.batch import Batch
from sslzoo.checks import check_at_least, check_interval
from sslzoo.random import sample_keys


@final
class Displace:
    """Rotate each image about its center and shift it, by amounts that its index determines.

    Pixels from outside are 0. It is for `FinalTable(change=...)`: a set of digits, for example, on
    which pixels at fixed positions say less.

    Args:
        degrees: the rotation is uniform in [-degrees, degrees].
        pixels: shifts are uniform in [-pixels, pixels], independently per axis.
        seed: seed of the amounts; it is not the run's, so that all runs see the same images.
    """

    def __init__(self, degrees: float = 25.0, pixels: float = 4.0, seed: int = 0) -> None:
        check_interval("degrees", degrees, 0, 180)
        check_at_least("pixels", pixels, 0)
        self.degrees, self.pixels, self.seed = degrees, pixels, seed

    def __call__(self, batch: Batch) -> Batch:
        """Displace the first view, images (B, C, H, W) uint8 or float."""
        images: Tensor = batch.views[0]
        if images.ndim != 4:
            raise ValueError(f"Displace must have images (B, C, H, W), got {tuple(images.shape)}")
        keys = sample_keys(self.seed, 0, batch.index)
        unit = keys.uniform("displace", 3, low=-1.0)  # (B, 3)
        angle, shift = unit[:, 0] * math.radians(self.degrees), unit[:, 1:] * self.pixels
        height, width = images.shape[2:]
        cos, sin = angle.cos(), angle.sin()
        ratio = height / width  # normalized coordinates have one unit per half side
        x, y = (2 * shift / shift.new_tensor([width, height])).unbind(1)
        # Maps a position in the result to its source: inverse shift, then inverse rotation.
        first = torch.stack([cos, sin * ratio, -cos * x - sin * ratio * y], 1)
        second = torch.stack([-sin / ratio, cos, sin / ratio * x - cos * y], 1)
        theta = torch.stack([first, second], 1)
        grid = affine_grid(theta, list(images.shape), align_corners=False)
        moved = grid_sample(images.to(theta.dtype), grid, "bilinear", "zeros", align_corners=False)
        if not images.is_floating_point():
            moved = moved.round_()
        return batch._replace(views=[moved.to(images.dtype), *batch.views[1:]])
