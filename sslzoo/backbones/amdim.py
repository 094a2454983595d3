"""AMDIM's encoder: a residual network without padding, with features at three scales.

Bachman, Hjelm and Buchwalter, NeurIPS 2019, https://arxiv.org/abs/1906.00910, section 4.
Reference code: Philip-Bachman/amdim-public, commit 8754ae1, model.py.

Deviations:
    1. The shortcut of an embedding has no bias; the code's has one, which the following batch norm
       cancels.
    2. Batch norms that the code builds but does not use are omitted.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.checks import check_at_least, check_choice
from sslzoo.layers import GlobalBatchNorm


def _norm(width: int, wanted: bool, bn_groups: int) -> nn.Module:
    return GlobalBatchNorm(width, groups=bn_groups) if wanted else nn.Identity()


class _Stem(nn.Module):
    """Convolution and ReLU, with reflection padding."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, border: int):
        super().__init__()
        self.conv, self.norm, self.border = conv, norm, border

    def forward(self, x: Tensor) -> Tensor:
        if self.border:
            x = F.pad(x, [self.border] * 4, mode="reflect")
        return self.norm(self.conv(x)).relu()


class _Residual(nn.Module):
    """Residual block: k x k - ReLU - 1x1 (initially zero), with an average-pooled shortcut.

    The shortcut's additional channels are zero.
    """

    def __init__(self, wide: int, narrow: int, kernel: int, stride: int, norm: nn.Module):
        super().__init__()
        if narrow < wide:
            raise ValueError(f"a block must have at least {wide} output channels, got {narrow}")
        self.conv1 = nn.Conv2d(wide, narrow, kernel, stride, bias=False)
        self.norm = norm
        self.conv2 = nn.Conv2d(narrow, narrow, 1, bias=False)
        self.pool = nn.AvgPool2d(kernel, stride)
        self.new = narrow - wide
        nn.init.kaiming_uniform_(self.conv1.weight, a=math.sqrt(5))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(self.pool(x), (0, 0, 0, 0, 0, self.new))
        return self.conv2(self.norm(self.conv1(x)).relu()) + shortcut


class _Embedding(nn.Module):
    """Embedding of a feature map: a residual pair of 1x1 convolutions, then batch norm."""

    def __init__(self, wide: int, out: int, norm: nn.Module, bn_groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(wide, out, 1, bias=False)
        self.norm1 = norm
        self.conv2 = nn.Conv2d(out, out, 1, bias=False)
        self.shortcut = nn.Conv2d(wide, out, 1, bias=False)
        self.norm2 = GlobalBatchNorm(out, groups=bn_groups)
        nn.init.kaiming_uniform_(self.conv1.weight, a=math.sqrt(5))
        nn.init.zeros_(self.conv2.weight)
        if out >= wide:
            with torch.no_grad():
                weight = nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
                weight[:wide, :, 0, 0].fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()) + self.shortcut(x))


class AMDIMEncoder(nn.Module):
    """AMDIM's encoder: feature maps of 7x7, 5x5 and 1x1 in one embedding space.

    The 1x1 map is the features.

    Args:
        size: side of the images in pixels: 32, 64 or 128.
        width: channels of the stem (ndf); 192 in the README's ImageNet run, 320 in the largest.
        num_features: channels of the maps (n_rkhs); 1536 in that run, 2560 in the largest.
        depth: residual blocks per stage (n_depth); 8 in that run, 10 in the largest.
        batch_norm: whether blocks have batch norm, as the three embeddings always do; False in
            the code's runs.
        in_chans: channels of the images.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
    """

    def __init__(
        self,
        size: Literal[32, 64, 128] = 128,
        width: int = 192,
        num_features: int = 1536,
        depth: int = 8,
        batch_norm: bool = False,
        in_chans: int = 3,
        bn_groups: int = 1,
    ):
        super().__init__()
        check_choice("size", size, (32, 64, 128))
        check_at_least("depth", depth, 1)
        self.num_features = num_features

        def norm(channels: int) -> nn.Module:
            return _norm(channels, batch_norm, bn_groups)

        def stem(wide: int, kernel: int, stride: int, border: int) -> nn.Module:
            conv = nn.Conv2d(wide, width, kernel, stride, bias=not batch_norm)
            return _Stem(conv, norm(width), border)

        def block(wide: int, narrow: int, kernel: int, stride: int) -> nn.Module:
            return _Residual(wide, narrow, kernel, stride, norm(narrow))

        def stage(wide: int, narrow: int, kernel: int, stride: int) -> list[nn.Module]:
            more = [block(narrow, narrow, 1, 1) for _ in range(depth - 1)]
            return [block(wide, narrow, kernel, stride), *more]

        if size == 32:
            top = 4 * width
            begin = [stem(in_chans, 3, 1, 0), block(width, width, 1, 1)]
            begin += stage(width, 2 * width, 4, 2) + stage(2 * width, top, 2, 2)
        else:
            top = 8 * width
            begin = [stem(in_chans, 3, 1, 0)]
            if size == 128:
                begin = [stem(in_chans, 5, 2, 2), stem(width, 3, 1, 0)]
            begin += stage(width, 2 * width, 4, 2) + stage(2 * width, 4 * width, 4, 2)
            begin += stage(4 * width, top, 2, 2)
        self.to_7 = nn.Sequential(*begin, norm(top))
        self.to_5 = nn.Sequential(*stage(top, top, 3, 1))
        self.to_1 = nn.Sequential(
            *stage(top, top, 3, 1),
            block(top, num_features, 3, 1),
            GlobalBatchNorm(num_features, groups=bn_groups),
        )
        self.embed_7 = _Embedding(top, num_features, norm(num_features), bn_groups)
        self.embed_5 = _Embedding(top, num_features, norm(num_features), bn_groups)
        self.to(memory_format=torch.channels_last)

    def forward_maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps of 1x1, 5x5 and 7x7, each (B, num_features, side, side)."""
        seven = self.to_7(x)
        five = self.to_5(seven)
        return self.to_1(five), self.embed_5(five), self.embed_7(seven)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_1(self.to_5(self.to_7(x))).flatten(1)
