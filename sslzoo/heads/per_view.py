"""PerView: one head per view, on the concatenated features of the views."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class PerView(nn.Module):
    """M heads of one output width, each on the features of its own view.

    Shapes: concatenated features (B, in_features) -> (B, M, out_features).

    Args:
        heads: M modules with `in_features` and `out_features`, such as `torch.nn.Linear`.

    Attributes:
        widths: `in_features` of each head; `in_features` is their sum.

    Raises:
        ValueError: no head, a head without the two widths, or different output widths.
    """

    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        in_features = [getattr(head, "in_features", None) for head in heads]
        out_features = [getattr(head, "out_features", None) for head in heads]
        if not heads or not all(isinstance(width, int) for width in in_features + out_features):
            raise ValueError(
                "heads must have in_features and out_features (int), got "
                f"{in_features} and {out_features}"
            )
        if len(set(out_features)) > 1:
            raise ValueError(f"heads must have the same out_features, got {out_features}")
        self.heads = nn.ModuleList(heads)
        self.widths = cast(list[int], in_features)
        self.in_features = sum(self.widths)
        self.out_features: int = cast(Any, out_features[0])

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.heads, x.split(self.widths, dim=1), strict=True)
        return torch.stack([head(part) for head, part in pairs], dim=1)
