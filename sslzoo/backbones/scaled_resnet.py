"""scaled_resnet: ResNets of released checkpoints with another width, stem or padding.

SwAV's (facebookresearch/swav at 06b1b7c) multiply the channels of every layer, CMC's
(HobbitLong/CMC at 7b227be) of every layer but the stem. BYOL's (deepmind-research at d8df415,
Haiku's ResNetV1) use TensorFlow's SAME padding: if a stride of 2 needs an odd number of padding
pixels, the right and the bottom get one more. Parameters have timm's names, which are
torchvision's.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers import Conv2dSame, create_pool2d
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from sslzoo.checks import check_choice
from sslzoo.layers import convert_batch_norm

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


def _pad_as_same(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with its weights and TensorFlow's SAME padding."""
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
    """A bottleneck ResNet with scaled width.

    Args:
        depth: 50, 101, 152 or 200.
        width: factor of the channels.
        stem_dim: channels of the first convolution; None: 64 times the width.
        padding: padding of strided convolutions and the max-pool: "symmetric" as in torch, "same"
            as in TensorFlow.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
        in_chans: channels of the input.
        zero_init_last: whether the last batch norm of each residual block has an initial scale of
            0.
    """
    check_choice("depth", depth, _BLOCKS)
    check_choice("padding", padding, ("symmetric", "same"))
    if width <= 0 or width * 64 != int(width * 64):
        raise ValueError(f"64 times width must be a positive integer, got width {width}")
    base = int(64 * width)
    stem = base if stem_dim is None else stem_dim
    net = ResNet(
        Bottleneck,
        _BLOCKS[depth],
        num_classes=0,
        in_chans=in_chans,
        stem_type="deep",  # the only stem with a free width; replaced below
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
