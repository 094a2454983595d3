"""Stochastic depth of Transformers: DINOv2's form, and none for a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def add_to_subset(
    x: Tensor, residual: Callable[[Tensor], Tensor], rate: float, order: Tensor | None = None
) -> Tensor:
    """Stochastic depth that computes a residual for a random part of the batch alone.

    Reference code: facebookresearch/dinov2 at b8931f7, block.py.

    Args:
        x: (B, L, D).
        residual: (b, L, D) -> (b, L, D), computed for b = max(1, int(B (1 - rate))) samples and
            scaled by B / b.
        rate: fraction of the samples that keep x.
        order: (B,) int64 permutation, of which the first b are used; None: a random one.
    """
    count = max(1, int(len(x) * (1 - rate)))
    order = torch.randperm(len(x), device=x.device) if order is None else order
    chosen = order[:count]
    added = residual(x[chosen])
    return x.index_add(0, chosen, added.to(x.dtype), alpha=len(x) / count)


class SubsetBlock(Block):
    """A timm block that in training computes its residuals for random parts of the batch."""

    subset_rate: float

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if not (self.training and self.subset_rate):
            return super().forward(x, *args, **options)
        x = add_to_subset(x, lambda part: self.ls1(self.attn(self.norm1(part))), self.subset_rate)
        return add_to_subset(x, lambda part: self.ls2(self.mlp(self.norm2(part))), self.subset_rate)


def drop_subsets(blocks: Iterable[Any], rate: float) -> None:
    """Give timm blocks this form of stochastic depth, in place.

    Raises:
        ValueError: a block is of another type.
    """
    for block in blocks:
        if type(block) is not Block:
            raise ValueError(
                f"subset_rate must be 0 with blocks of type {type(block).__name__}, got {rate}"
            )
        block.__class__ = SubsetBlock
        block.subset_rate = rate


def without_drop_path(module: nn.Module) -> nn.Module:
    """Disable stochastic depth in place, as for a teacher."""
    for part in module.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
        elif isinstance(part, SubsetBlock):
            part.subset_rate = 0.0
    return module
