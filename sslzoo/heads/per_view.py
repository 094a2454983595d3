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
        takes = [getattr(head, "in_features", None) for head in heads]
        gives = [getattr(head, "out_features", None) for head in heads]
        if not heads or not all(isinstance(width, int) for width in takes + gives):
            raise ValueError(
                f"heads must have in_features and out_features (int), got {takes} and {gives}"
            )
        if len(set(gives)) > 1:
            raise ValueError(f"heads must have the same out_features, got {gives}")
        self.heads = nn.ModuleList(heads)
        self.widths = cast(list[int], takes)
        self.in_features = sum(self.widths)
        self.out_features: int = cast(Any, gives[0])

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.heads, x.split(self.widths, dim=1), strict=True)
        return torch.stack([head(part) for head, part in pairs], dim=1)
