"""UNet: an encoder and a decoder with skip connections, for features at every position.

Ronneberger, Fischer and Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation,
MICCAI 2015, https://arxiv.org/abs/1505.04597.

Deviations:
    1. The encoder's 4x4 convolutions of stride 2 with LeakyReLU are those of pix2pix (Isola et al.,
       CVPR 2017, https://arxiv.org/abs/1611.07004); U-Net has 3x3 convolutions and max-pooling.
    2. The decoder ends before the full resolution, at `map_stride`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.layers import GlobalBatchNorm


class UNet(nn.Module):
    """A U-Net whose decoder's last feature map is its features.

    Shapes: (B, C, H, W) -> (B, num_features), the mean over the positions of `forward_map`,
    (B, num_features, H / map_stride, W / map_stride), rounded up.

    Args:
        widths: channels of the encoder's levels, each of half the resolution of the one before.
        map_stride: pixels per position of the map: a power of two below 2^levels.
        in_chans: channels of the images.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.

    Attributes:
        num_features: channels of the decoder's last level, those of the encoder there.
        map_features: the same.

    Raises:
        ValueError: there are fewer than two widths, or map_stride is none of the decoder's.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (24, 48, 96, 96),
        map_stride: int = 4,
        in_chans: int = 3,
        bn_groups: int = 1,
    ) -> None:
        super().__init__()
        strides = [2 << level for level in range(len(widths) - 1)]
        if map_stride not in strides:
            raise ValueError(
                f"map_stride must be one of {strides} for {len(widths)} widths, got {map_stride}"
            )
        self.lowest = strides.index(map_stride)  # the level at which the decoder ends

        def layer(conv: nn.Conv2d) -> nn.Module:
            norm = GlobalBatchNorm(conv.out_channels, groups=bn_groups)
            return nn.Sequential(conv, norm, nn.LeakyReLU(0.2))

        self.down = nn.ModuleList(
            layer(nn.Conv2d(wide, narrow, 4, 2, 1, bias=False))
            for wide, narrow in zip((in_chans, *widths), widths, strict=False)
        )
        levels = range(len(widths) - 2, self.lowest - 1, -1)
        self.up = nn.ModuleList(
            layer(nn.Conv2d(widths[i + 1] + widths[i], widths[i], 3, 1, 1, bias=False))
            for i in levels
        )
        self.num_features = self.map_features = widths[self.lowest]
        self.to(memory_format=torch.channels_last)

    def forward_map(self, x: Tensor) -> Tensor:
        """The decoder's last feature map (B, map_features, h, w)."""
        skips = []
        for down in self.down:
            if x.shape[2] % 2 or x.shape[3] % 2:
                x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
            x = down(x)
            skips.append(x)
        for level, up in zip(range(len(skips) - 2, self.lowest - 1, -1), self.up, strict=True):
            height, width = skips[level].shape[2:]
            x = F.interpolate(x, scale_factor=2.0)[:, :, :height, :width]
            x = up(torch.cat([x, skips[level]], dim=1))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_map(x).mean((2, 3))
