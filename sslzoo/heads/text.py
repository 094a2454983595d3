"""Heads of text methods: BERT's masked language model head and pooler."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MLMHead(nn.Module):
    """BERT's masked language model head: Linear-GELU-LayerNorm-Linear to the vocabulary.

    Shapes: (N, in_features) -> (N, num_ids).

    Args:
        in_features: D, the backbone's width.
        num_ids: V.
    """

    def __init__(self, in_features: int, num_ids: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, num_ids
        self.transform = nn.Sequential(
            nn.Linear(in_features, in_features), nn.GELU(), nn.LayerNorm(in_features)
        )
        self.decoder = nn.Linear(in_features, num_ids)
        nn.init.normal_(self.decoder.weight, std=0.02)
        nn.init.zeros_(self.decoder.bias)

    def tie(self, embedding: nn.Embedding) -> None:
        """Tie the decoder's weight to the token embedding, (V, D).

        Raises:
            ValueError: for an embedding of another shape.
        """
        if embedding.weight.shape != self.decoder.weight.shape:
            raise ValueError(
                f"MLMHead's num_ids={self.out_features} and in_features={self.in_features} must be "
                f"the shape of the backbone's embedding, got {tuple(embedding.weight.shape)}"
            )
        self.decoder.weight = embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


class TanhHead(nn.Module):
    """BERT's pooler, Linear and tanh, used by SimCSE. Shapes: (B, width) -> (B, width).

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_features = self.out_features = width
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))
