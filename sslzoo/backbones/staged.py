"""Staged backbones, with an intermediate feature map, for methods with local features.

Such a backbone has `map_features` (channels of the map), `forward_map` and `forward_from_map`, and
its `forward` is their composition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.backbones.image import cifar_resnet
from sslzoo.checks import check_interval
from sslzoo.layers import GlobalBatchNorm


class Staged(nn.Module):
    """A backbone of two parts: images to a feature map, and the map to features.

    Args:
        low: (B, C, H, W) -> (B, map_features, h, w).
        high: the map -> (B, num_features).
        map_features: channels of the map.
        num_features: width of the features.
    """

    def __init__(self, low: nn.Module, high: nn.Module, map_features: int, num_features: int):
        super().__init__()
        self.low, self.high = low, high
        self.map_features, self.num_features = map_features, num_features
        self.to(memory_format=torch.channels_last)

    def forward_map(self, x: Tensor) -> Tensor:
        """The feature map (B, map_features, h, w)."""
        return self.low(x)

    def forward_from_map(self, m: Tensor) -> Tensor:
        """The features (B, num_features) of a feature map."""
        return self.high(m)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(self.low(x))


def dim_convnet(size: int = 32, in_chans: int = 3, bn_groups: int = 1) -> nn.Module:
    """Deep InfoMax's CIFAR encoder, with a feature map and 1024 features.

    The map is 128 x 8 x 8 for 32 pixels.

    The layers are Conv(64), Conv(128) (the map), Conv(256) and Linear(1024), each with batch norm
    and ReLU; convolutions are 4x4 with stride 2. The features are the paper's "fc", and its Y is a
    Linear on top. Code: rdevon/DIM at bac4765, configuration basic32x32.

    Args:
        size: side of the images in pixels, a multiple of 8.
        in_chans: channels of the images.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
    """
    if size < 8 or size % 8:
        raise ValueError(f"size must be a positive multiple of 8, got {size}")

    def halve(wide: int, narrow: int) -> list[nn.Module]:
        conv = nn.Conv2d(wide, narrow, 4, 2, 1, bias=False)
        return [conv, GlobalBatchNorm(narrow, groups=bn_groups), nn.ReLU(inplace=True)]

    low = nn.Sequential(*halve(in_chans, 64), *halve(64, 128))
    high = nn.Sequential(
        *halve(128, 256),
        nn.Flatten(),
        nn.Linear(256 * (size // 8) ** 2, 1024, bias=False),
        GlobalBatchNorm(1024, groups=bn_groups),
        nn.ReLU(inplace=True),
    )
    return Staged(low, high, 128, 1024)


def staged_cifar_resnet(
    name: str = "resnet18",
    map_stage: int = 3,
    bn_groups: int = 1,
    in_chans: int = 3,
    zero_init_last: bool = True,
) -> nn.Module:
    """`cifar_resnet` with the output of a stage as its feature map.

    Args:
        name: as in `cifar_resnet`.
        map_stage: stage of the feature map, 1 to 3; for 32 pixels, maps have side 32, 16 and 8.
        bn_groups: see `cifar_resnet`.
        in_chans: see `cifar_resnet`.
        zero_init_last: see `cifar_resnet`.
    """
    check_interval("map_stage", map_stage, 1, 3)
    net: Any = cifar_resnet(name, bn_groups, in_chans, zero_init_last)
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    low = nn.Sequential(net.conv1, net.bn1, net.act1, *stages[:map_stage])
    high = nn.Sequential(*stages[map_stage:], net.global_pool)
    return Staged(low, high, net.feature_info[map_stage]["num_chs"], net.num_features)
