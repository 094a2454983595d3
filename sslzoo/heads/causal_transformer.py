"""Causal transformer with relative position embeddings.

Vaswani et al., Attention Is All You Need, NeurIPS 2017; relative positions as in Shaw et al.,
NAACL 2018, https://arxiv.org/abs/1803.02155, for the keys only. Context network and predictor of
CPC in Riviere et al., ICASSP 2020, https://arxiv.org/abs/2002.02848. Reference code:
facebookresearch/CPC_audio at b98a1bd, cpc/transformers.py.

Deviations:
    1. The table of relative positions has `max_frames` rows and is truncated for shorter sequences;
       the code's is for one fixed length.

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
        bound = (width // heads) ** -0.5  # as in the code
        self.distance = nn.Parameter(
            torch.empty(max_frames, width // heads).uniform_(-bound, bound)
        )

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[-2]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        t = torch.arange(frames, device=x.device)
        back = t[:, None] - t  # distance from query back to key
        by_distance = q @ self.distance[:frames].mT  # (B, H, T, T), per distance
        bias = by_distance.gather(-1, back.clamp_min(0).expand_as(by_distance))
        bias = bias * q.shape[-1] ** -0.5  # as the content scores
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
    """Layers of causal attention with post-norm. Shapes: (B, T, D) -> (B, T, D).

    Args:
        width: D.
        layers: number of layers; 1 in CPC_audio.
        heads: H, which divides D; 8 in CPC_audio.
        hidden: hidden width of the MLP; 2048 in CPC_audio.
        max_frames: largest T; 116 in CPC_audio, whose 128 frames predict 12 steps.
        dropout: dropout rate of attention and MLP; 0.1 in CPC_audio.
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
            raise ValueError(
                f"x must have at most max_frames={self.max_frames} frames, got {x.shape[-2]}"
            )
        return self.layers(x)
