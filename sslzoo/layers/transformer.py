"""Pieces of transformers that backbones and heads share: fixed positions and initial weights.

As in facebookresearch/dino at 7c446df, moco-v3 at c349e6e, mae at efb2a80 and ijepa at 52c1ae9.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Init = Literal["dino", "moco_v3", "mae", "ijepa"]


def sincos_positions(
    height: int, width: int, dim: int, first: Literal["column", "row"] = "column"
) -> Tensor:
    """Sines and cosines of the place of each patch, row by row. (height * width, dim) float32.

    Half of the channels tell the column, half the row: MAE and I-JEPA put the column first, MoCo
    v3's code the row (for a grid that is not square it swaps height and width besides).

    Raises:
        ValueError: for a width that is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine and cosine of two coordinates: a multiple of 4 wanted, got {dim}")
    if first not in ("column", "row"):
        raise ValueError(f"first is 'column' or 'row', got {first!r}")
    place = torch.arange(height * width, dtype=torch.float64)
    row, column = place.div(width, rounding_mode="floor"), place % width
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    halves = []
    for coordinate in (column, row) if first == "column" else (row, column):
        angle = coordinate[:, None] * frequency
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=1).float()


def initialize_blocks(blocks: nn.Module, init: Init) -> None:
    """Draw the Linear layers of transformer blocks, and of what else stands in `blocks`, anew."""
    for name, part in blocks.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        if init in ("dino", "ijepa"):
            nn.init.trunc_normal_(part.weight, std=0.02)
        elif init == "moco_v3" and name.endswith("qkv"):
            bound = math.sqrt(6 / (part.out_features // 3 + part.in_features))
            nn.init.uniform_(part.weight, -bound, bound)
        else:
            nn.init.xavier_uniform_(part.weight)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
