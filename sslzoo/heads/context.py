"""PixelContext: CPC's context network for images, a PixelCNN over feature maps.

Van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves and Kavukcuoglu, Conditional Image Generation
with PixelCNN Decoders, NeurIPS 2016, https://arxiv.org/abs/1606.05328; as CPC's context network for
images, https://arxiv.org/abs/1807.03748. Reference code: loeweX/Greedy_InfoMax at 22d17e4,
vision/models/PixelCNN_Autoregressor.py.

Deviations:
    1. Only the vertical stack, with a residual connection in each layer; the code's horizontal
       stack sees the same rows, because its mask is "only vertical", too.

Shapes: B feature maps, D channels, H x W locations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _GatedLayer(nn.Module):
    """x + tanh(a) sigmoid(b); a, b from the 2 x 3 neighborhood in and above the row."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(F.pad(x, (1, 1, 1, 0))).chunk(2, dim=1)  # rows above only
        return x + torch.tanh(a) * torch.sigmoid(b)


class PixelContext(nn.Module):
    """Gated masked convolutions: a location sees its own row and the rows above.

    Shapes: (B, D, H, W) -> (B, D, H, W).

    Args:
        width: D.
        layers: number of layers, each of which adds one row above; 4 in the code.
    """

    def __init__(self, width: int, layers: int = 4):
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(f"width and layers must be at least 1, got {width} and {layers}")
        self.in_features = self.out_features = width
        self.layers = nn.Sequential(*(_GatedLayer(width) for _ in range(layers)))
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))
