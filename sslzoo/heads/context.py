"""Context: what stands at a place of a map and above it, for predicting what is below.

Van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves and Kavukcuoglu, Conditional Image Generation
with PixelCNN Decoders, NeurIPS 2016, https://arxiv.org/abs/1606.05328; as CPC's context network for
images, https://arxiv.org/abs/1807.03748. Reference code: loeweX/Greedy_InfoMax at 22d17e4,
vision/models/PixelCNN_Autoregressor.py.

Deviations:
    1. The vertical stack alone, with a residual in each layer; the code's horizontal stack sees the
       same rows, since its mask too is "only vertical".

Shapes: B maps, D channels, H x W places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _GatedLayer(nn.Module):
    """x + tanh(a) sigmoid(b), with a and b of the 2 x 3 places beside and above each place."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(F.pad(x, (1, 1, 1, 0))).chunk(2, dim=1)  # rows above only
        return x + torch.tanh(a) * torch.sigmoid(b)


class PixelContext(nn.Module):
    """Gated masked convolutions: the context of a place sees its row and the rows above.

    Shapes: (B, D, H, W) -> (B, D, H, W).

    Args:
        width: D.
        layers: each sees one row further up; 4 in the code.
    """

    def __init__(self, width: int, layers: int = 4):
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(f"a width and layers of at least 1 wanted, got {width} and {layers}")
        self.in_features = self.out_features = width
        self.layers = nn.Sequential(*(_GatedLayer(width) for _ in range(layers)))
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))
