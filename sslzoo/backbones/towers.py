"""Towers: one backbone per view, with concatenated features.

Tian, Krishnan and Isola, Contrastive Multiview Coding, ECCV 2020,
https://arxiv.org/abs/1906.05849, whose evaluation concatenates the views' features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sslzoo.batch import View
from sslzoo.checks import check_num_features


class Towers(nn.Module):
    """A backbone of M backbones, one per view, each with its own channels.

    The input is an image of all channels, as in evaluation (L, a and b; or color, depth and
    normals), which is split; or the M views, as in training. Shapes: (B, sum of channels, H, W), or
    M views (B, channels, H, W), -> (B, num_features).

    Args:
        towers: M backbones with `num_features`.
        channels: channels of each tower's view, in their order in the image.

    Attributes:
        num_features: sum of the towers' widths.
        widths: width of each tower's features, in order.
        map_features: sum of the maps' channels, and `forward_map`: the towers' feature maps,
            concatenated (B, map_features, h, w); if every tower has them.

    Raises:
        ValueError: there is no tower, a tower has no `num_features`, or `channels` has another
            length; in use, the number of views or channels is wrong.
    """

    def __init__(self, towers: list[nn.Module], channels: Sequence[int]) -> None:
        super().__init__()
        if not towers or len(towers) != len(channels) or min(channels) < 1:
            raise ValueError(
                f"channels must be one positive number per tower, got {list(channels)} for "
                f"{len(towers)} towers"
            )
        self.widths = [check_num_features(tower, "towers") for tower in towers]
        self.towers = nn.ModuleList(towers)
        self.channels = list(channels)
        self.num_features = sum(self.widths)
        if all(callable(getattr(tower, "forward_map", None)) for tower in towers):
            self.map_features = sum(cast(Any, tower).map_features for tower in towers)
            self.forward_map = partial(Towers._maps, self)

    def split(self, view: View) -> Sequence[Tensor]:
        """Split an image into the towers' views, M tensors (B, channels, H, W)."""
        views = [view] if isinstance(view, Tensor) else list(view)
        if len(views) == 1 and views[0].shape[1] == sum(self.channels):
            return cast(Any, views[0].split(self.channels, dim=1))
        if [part.shape[1] for part in views] != self.channels:
            raise ValueError(
                f"the input must be an image of {sum(self.channels)} channels, or views of "
                f"{self.channels}, got {[part.shape[1] for part in views]}"
            )
        return views

    def _maps(self, view: View) -> Tensor:
        pairs = zip(self.towers, self.split(view), strict=True)
        return torch.cat([cast(Any, tower).forward_map(part) for tower, part in pairs], dim=1)

    def forward(self, view: View) -> Tensor:
        pairs = zip(self.towers, self.split(view), strict=True)
        return torch.cat([tower(part) for tower, part in pairs], dim=1)
