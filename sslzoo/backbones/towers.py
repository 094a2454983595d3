"""Towers: one backbone a view, their features side by side.

Tian, Krishnan and Isola, Contrastive Multiview Coding, ECCV 2020,
https://arxiv.org/abs/1906.05849, whose evaluation concatenates the views' features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sslzoo.batch import View


class Towers(nn.Module):
    """M backbones, each for channels of its own; a backbone of all of them together.

    Takes what evaluation gives, one image of all channels (L, a and b; or color, depth and
    normals), and cuts it; or the views already cut, as training gives them. Shapes:
    (B, sum of channels, H, W), or M views (B, channels, H, W), -> (B, num_features).

    Args:
        towers: M backbones with `num_features`.
        channels: of each tower's view, in the order in which they stand in the image.

    Attributes:
        num_features: the sum of the towers' widths.
        widths: of each tower, in the order of the features.

    Raises:
        ValueError: no tower, a tower without `num_features`, or other than one number of channels
            a tower; in use, for another number of views or channels.
    """

    def __init__(self, towers: list[nn.Module], channels: Sequence[int]) -> None:
        super().__init__()
        if not towers or len(towers) != len(channels) or min(channels) < 1:
            raise ValueError(
                f"one positive number of channels a tower wanted, got {len(towers)} towers and "
                f"channels {list(channels)}"
            )
        widths = [getattr(tower, "num_features", None) for tower in towers]
        if not all(isinstance(width, int) for width in widths):
            raise ValueError(f"each tower needs num_features (int), got {widths}")
        self.towers = nn.ModuleList(towers)
        self.channels = list(channels)
        self.widths = cast(list[int], widths)
        self.num_features = sum(self.widths)

    def split(self, view: View) -> Sequence[Tensor]:
        """The towers' views, M tensors (B, channels, H, W), of an image or of M views."""
        views = [view] if isinstance(view, Tensor) else list(view)
        if len(views) == 1 and views[0].shape[1] == sum(self.channels):
            return cast(Any, views[0].split(self.channels, dim=1))
        if [part.shape[1] for part in views] != self.channels:
            raise ValueError(
                f"towers want an image of {sum(self.channels)} channels, or views of "
                f"{self.channels}, got {[part.shape[1] for part in views]}"
            )
        return views

    def forward(self, view: View) -> Tensor:
        pairs = zip(self.towers, self.split(view), strict=True)
        return torch.cat([tower(part) for tower, part in pairs], dim=1)
