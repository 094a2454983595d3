"""SimCLR v2's ResNets: deeper, wider, and with optional selective kernels.

Chen, Kornblith, Swersky, Norouzi and Hinton, Big Self-Supervised Models are Strong
Semi-Supervised Learners, NeurIPS 2020, https://arxiv.org/abs/2006.10029; code
google-research/simclr at 383d414 (tf2/resnet.py). Selective kernels: Li et al., CVPR 2019,
https://arxiv.org/abs/1903.06586.

The network and the plain blocks are timm's, and depth 50 has the parameter names of timm's
`resnet50`. timm's own variants differ: `skresnet50` splits the input between a 3x3 and a dilated
3x3 convolution; `resnet50d` does not pool the stride-1 shortcut, and averages a pooling window over
the existing pixels only; width multiplies the bottlenecks only.

Deviations:
    1. Running variances of batch norm are unbiased, as in torch; TensorFlow's are biased.
    2. Squeeze-and-excitation and DropBlock, off by default in the code, are omitted.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import create_pool2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from sslzoo.checks import check_at_least, check_choice, check_interval
from sslzoo.layers import convert_batch_norm

# Blocks per stage. The code has 18 to 200; 14 and 26 are timm's, for small experiments.
_BLOCKS = {
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_BASIC = (18, 34)


class SelectiveKernelConv(nn.Module):
    """Selective kernels: a 3x3 convolution to two branches, mixed by attention over branches.

    The output has batch norm and ReLU.
    Shapes: (B, in_dim, H, W) -> (B, out_dim, H / stride, W / stride).

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output; the convolution has twice as many.
        stride: stride of the convolution.
        sk_ratio: width of the attention as a fraction of out_dim; at least 32 channels.
    """

    def __init__(self, in_dim: int, out_dim: int, stride: int, sk_ratio: float):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, 2 * out_dim, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * out_dim)
        self.relu = nn.ReLU(inplace=True)
        mid_dim = max(int(out_dim * sk_ratio), 32)
        self.mixing = nn.Sequential(
            nn.Conv2d(out_dim, mid_dim, 1, bias=False),
            nn.BatchNorm2d(mid_dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_dim, 2 * out_dim, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x1, x2 = x.chunk(2, dim=1)
        pooled = x.mean((2, 3), keepdim=True).unflatten(1, (2, -1)).sum(1)
        weights = self.mixing(pooled).unflatten(1, (2, -1)).softmax(1)  # (B, 2, out_dim, 1, 1)
        weights = weights.to(x.dtype)  # under autocast a softmax is float32
        return torch.lerp(x2, x1, weights[:, 0])  # x2's weight is 1 - x1's


def _shortcut(in_dim: int, out_dim: int, stride: int, pool: bool) -> nn.Sequential:
    """1x1 convolution and batch norm, with `pool` after 2x2 average pooling.

    At the right and bottom edge, stride 2 pads with zeros (for odd sizes) and stride 1 averages the
    existing pixels only, which repeating the edge reproduces.
    """
    layers: list[nn.Module] = []
    if pool and stride > 1:
        layers.append(nn.AvgPool2d(2, stride, ceil_mode=True, divisor_override=4))
    elif pool:
        layers.append(nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1)))
    step = 1 if pool else stride
    layers += [nn.Conv2d(in_dim, out_dim, 1, step, bias=False), nn.BatchNorm2d(out_dim)]
    return nn.Sequential(*layers)


def adapt_block(block: Any, first: bool, sk_ratio: float) -> None:
    """Convert timm's residual block to SimCLR v2's, in place.

    Args:
        block: BasicBlock or Bottleneck; the former never has selective kernels, as in the code.
        first: whether it is the first of its stage, which always has a projection shortcut.
        sk_ratio: see `simclr_v2_resnet`.
    """
    wide = isinstance(block, Bottleneck)
    if first:
        out_dim = (block.bn3 if wide else block.bn2).num_features
        block.downsample = _shortcut(block.conv1.in_channels, out_dim, block.stride, sk_ratio > 0)
    if sk_ratio > 0 and wide:
        conv = block.conv2
        block.conv2 = SelectiveKernelConv(
            conv.in_channels, conv.out_channels, block.stride, sk_ratio
        )
        block.bn2, block.act2 = nn.Identity(), nn.Identity()


def _initialize(net: nn.Module) -> None:
    """TensorFlow's VarianceScaling: normal truncated at two deviations, variance 1 / fan-in."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            std = fan_in**-0.5 / 0.8796256610342398  # deviation of the truncated normal
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)


def simclr_v2_resnet(
    depth: int = 50,
    width: int = 1,
    sk_ratio: float = 0.0,
    bn_groups: int = 1,
    in_chans: int = 3,
    cifar_stem: bool = False,
    zero_init_last: bool = True,
) -> nn.Module:
    """A ResNet of SimCLR v2, with or without selective kernels.

    Args:
        depth: 50, 101 or 152 in the paper; also 18, 34 and 200 in the code; 14 and 26 are small
            bottleneck ResNets.
        width: factor of the channels, 1 to 3 in the paper.
        sk_ratio: 0.0625 in the paper's models with selective kernels ("SK"), which also have a
            stem of three convolutions and pooled shortcuts (ResNet-D); 0: none of the three.
            Depths 18 and 34 only get the stem and the shortcuts, as in the code.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
        in_chans: channels of the input.
        cifar_stem: one 3x3 convolution of stride 1 without max-pool, as in the code for up to 32
            pixels.
        zero_init_last: whether the last batch norm of each residual block has an initial scale of
            0, as in the code.
    """
    check_choice("depth", depth, _BLOCKS)
    check_at_least("width", width, 1)
    check_interval("sk_ratio", sk_ratio, 0, 1)
    stem_dim = 64 * width
    net = ResNet(
        BasicBlock if depth in _BASIC else Bottleneck,
        _BLOCKS[depth],
        num_classes=0,
        in_chans=in_chans,
        stem_type="deep",  # the only stem with a free width; replaced below if sk_ratio is 0
        stem_width=stem_dim // 2,
        channels=tuple(stem_dim * 2**stage for stage in range(4)),
        zero_init_last=zero_init_last,
    )
    net.maxpool = nn.Identity() if cifar_stem else create_pool2d("max", 3, 2, padding="same")
    if cifar_stem:
        net.conv1 = nn.Conv2d(in_chans, stem_dim, 3, padding=1, bias=False)
    elif sk_ratio == 0:
        net.conv1 = nn.Conv2d(in_chans, stem_dim, 7, 2, padding=3, bias=False)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for i, block in enumerate(stage):
            adapt_block(block, i == 0, sk_ratio)
    _initialize(net)
    return convert_batch_norm(net, bn_groups).to(memory_format=torch.channels_last)
