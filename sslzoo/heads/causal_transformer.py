"""CausalTransformer: attention to a frame and those before it, by content and by distance.

Vaswani et al., Attention Is All You Need, NeurIPS 2017; distances as Shaw et al., NAACL 2018,
https://arxiv.org/abs/1803.02155, on the keys alone. As context and as predictor of CPC: Riviere et
al., ICASSP 2020, https://arxiv.org/abs/2002.02848. Reference code: facebookresearch/CPC_audio at
b98a1bd, cpc/transformers.py.

Deviations:
    1. The distance table has a row for each distance below `max_frames` and is cut where a sequence
       is shorter; the code's is for one length alone.

Shapes: B sequences, T frames, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, max_frames: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        bound = (width // heads) ** -0.5  # as the code's other matrices
        self.distance = nn.Parameter(
            torch.empty(max_frames, width // heads).uniform_(-bound, bound)
        )

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[-2]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        t = torch.arange(frames, device=x.device)
        back = t[:, None] - t  # how far behind the query a key is
        by_distance = q @ self.distance[:frames].mT  # (B, H, T, T): of each distance
        bias = by_distance.gather(-1, back.clamp_min(0).expand_as(by_distance))
        bias = bias * q.shape[-1] ** -0.5  # as the scores by content
        mask = bias.masked_fill(back < 0, float("-inf"))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, mask.to(q.dtype), dropout)
        return self.out(mixed.transpose(-3, -2).flatten(-2))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, max_frames: int, dropout: float):
        super().__init__()
        self.attention = _Attention(width, heads, max_frames, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class CausalTransformer(nn.Module):
    """Layers of causal attention, norms behind the sums. Shapes: (B, T, D) -> (B, T, D).

    Args:
        width: D.
        layers: how many; 1 in CPC_audio.
        heads: H, which divides D; 8 there.
        hidden: width inside the MLP; 2048 there.
        max_frames: T at most; 116 there, where a sequence of 128 frames predicts 12 steps.
        dropout: of attention and MLP; 0.1 there.
    """

    def __init__(
        self,
        width: int,
        layers: int = 1,
        heads: int = 8,
        hidden: int = 2048,
        max_frames: int = 128,
        dropout: float = 0.1,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        self.in_features = self.out_features = width
        self.max_frames = max_frames
        self.layers = nn.Sequential(
            *(_Layer(width, heads, hidden, max_frames, dropout) for _ in range(layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] > self.max_frames:
            raise ValueError(f"at most {self.max_frames} frames wanted, got {x.shape[-2]}")
        return self.layers(x)
