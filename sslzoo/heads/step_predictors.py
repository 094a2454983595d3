"""Step predictors: predictions of the K following frames from a context.

CPC's W_k (https://arxiv.org/abs/1807.03748), and the transformers of Riviere et al. in their stead,
https://arxiv.org/abs/2002.02848.

Shapes: B sequences, T frames, D' width of a context, D width of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo.heads.causal_transformer import CausalTransformer


class LinearSteps(nn.Module):
    """One matrix per step: c W_k. Shapes: (B, T, D') -> (B, T, K, D).

    Args:
        in_features: D'.
        out_features: D.
        num_steps: K; 12 in the paper.
    """

    def __init__(self, in_features: int, out_features: int, num_steps: int = 12):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.num_steps = num_steps
        self.linear = nn.Linear(in_features, num_steps * out_features, bias=False)

    def forward(self, c: Tensor) -> Tensor:
        return self.linear(c).unflatten(-1, (self.num_steps, self.out_features))


class TransformerSteps(nn.Module):
    """One transformer layer per step. Shapes: (B, T, D) -> (B, T, K, D).

    Args:
        width: D of contexts and frames.
        num_steps: K; 12 in the paper.
        heads: see `CausalTransformer`.
        hidden: see `CausalTransformer`.
        max_frames: see `CausalTransformer`.
        dropout: see `CausalTransformer`.
    """

    def __init__(
        self,
        width: int,
        num_steps: int = 12,
        heads: int = 8,
        hidden: int = 2048,
        max_frames: int = 128,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.in_features = self.out_features = width
        self.num_steps = num_steps
        self.steps = nn.ModuleList(
            CausalTransformer(width, 1, heads, hidden, max_frames, dropout)
            for _ in range(num_steps)
        )

    def forward(self, c: Tensor) -> Tensor:
        return torch.stack([step(c) for step in self.steps], dim=-2)
