"""Attentive probe: one learned query attends to an encoder's tokens, then a linear classifier.

Bardes et al., Revisiting Feature Prediction for Learning Visual Representations from Video
(V-JEPA), https://arxiv.org/abs/2404.08471; code facebookresearch/jepa at 0f772c5,
src/models/attentive_pooler.py. Cross-attention alone (`complete=False`) is the probe of CAE: Chen
et al., Context Autoencoder, IJCV 2024, https://arxiv.org/abs/2202.03026.

Deviations: none.

Shapes: B samples, L tokens, D width, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentiveProbe(nn.Module):
    """Classifier on all tokens of a frozen encoder. Shapes: (B, L, D) -> (B, C).

    Args:
        width: D.
        num_classes: C.
        num_heads: attention heads; a divisor of D.
        mlp_ratio: hidden width of the MLP over D.
        complete: whether norms, an MLP and residual connections belong to the block.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        complete: bool = True,
    ):
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads must be a divisor of the width {width}, got {num_heads}")
        self.num_heads, self.complete = num_heads, complete
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if complete:
            hidden = int(width * mlp_ratio)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.query, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.classifier:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        with torch.no_grad():  # `_rescale_blocks` of the code, for the first layer
            for module in (self.proj, self.fc2) if complete else (self.proj,):
                module.weight.div_(math.sqrt(2.0))

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(len(tokens), -1, -1)
        if not self.complete:
            return self.classifier(self._attend(query, tokens)[:, 0])
        query = query + self._attend(query, self.norm1(tokens))
        query = query + self.fc2(F.gelu(self.fc1(self.norm2(query))))
        return self.classifier(query[:, 0])

    def _attend(self, query: Tensor, tokens: Tensor) -> Tensor:
        q = self.q(query).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))
