"""ResNets whose width, stem or padding are not torchvision's, as released checkpoints have them.

SwAV's (facebookresearch/swav at 06b1b7c) multiply every channel; CMC's (HobbitLong/CMC at 7b227be)
all but the stem's; BYOL's (deepmind-research at d8df415, Haiku's ResNetV1) pad as TensorFlow's
SAME: where a stride of 2 needs an odd border, the right and the bottom get the larger half.
Parameters have timm's names, which are torchvision's.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers import Conv2dSame, create_pool2d
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from sslzoo.layers import convert_batch_norm

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


def _pad_as_same(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with its weights, padded as TensorFlow's SAME."""
    out = Conv2dSame(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        bias=False,
    )
    out.weight = conv.weight
    return out


def scaled_resnet(
    depth: int = 50,
    width: float = 1.0,
    stem_dim: int | None = None,
    padding: Literal["symmetric", "same"] = "symmetric",
    bn_groups: int = 1,
    in_chans: int = 3,
    zero_init_last: bool = True,
) -> nn.Module:
    """A ResNet of bottlenecks.

    Args:
        depth: 50, 101, 152 or 200.
        width: multiplies every channel.
        stem_dim: channels of the first convolution; None: 64 times the width.
        padding: of strided convolutions and the max-pool: "symmetric" as torch, "same" as
            TensorFlow.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
        in_chans: channels of the input.
        zero_init_last: scale 0 in the last batch norm of each residual block.
    """
    if depth not in _BLOCKS:
        raise ValueError(f"depth is one of {sorted(_BLOCKS)}, got {depth}")
    if width <= 0 or width * 64 != int(width * 64):
        raise ValueError(f"width times 64 is a positive whole number, got {width}")
    if padding not in ("symmetric", "same"):
        raise ValueError(f"padding is 'symmetric' or 'same', got {padding!r}")
    base = int(64 * width)
    stem = base if stem_dim is None else stem_dim
    net = ResNet(
        Bottleneck,
        _BLOCKS[depth],
        num_classes=0,
        in_chans=in_chans,
        stem_type="deep",  # the one whose width is free; replaced below
        stem_width=stem // 2,
        channels=tuple(base * 2**stage for stage in range(4)),
        zero_init_last=zero_init_last,
    )
    net.conv1 = nn.Conv2d(in_chans, stem, 7, 2, padding=3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    if padding == "same":
        net.conv1 = _pad_as_same(net.conv1)
        net.maxpool = create_pool2d("max", 3, 2, padding="same")
        for stage in (net.layer2, net.layer3, net.layer4):
            stage[0].conv2 = _pad_as_same(stage[0].conv2)
    return convert_batch_norm(net, bn_groups).to(memory_format=torch.channels_last)
