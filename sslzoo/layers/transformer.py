"""Parts of transformers that backbones and heads share: fixed positions and initializations.

Reference code: facebookresearch/dino at 7c446df, dinov2 at b8931f7, moco-v3 at c349e6e, mae at
efb2a80, ijepa at 52c1ae9, microsoft/SimMIM at d3e29bc and mlfoundations/open_clip at 89fb801.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sslzoo.checks import check_choice

Init = Literal["dino", "dinov2", "moco_v3", "mae", "ijepa", "beit", "msn", "clip"]


def sincos_positions(
    height: int, width: int, dim: int, first: Literal["column", "row"] = "column"
) -> Tensor:
    """Sine-cosine position embeddings of a grid of patches, (height * width, dim) float32.

    Half of the channels encode the column, half the row. MAE and I-JEPA put the column first, MoCo
    v3's code the row (and it swaps height and width of a grid that is not square).

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(
            f"dim must be a multiple of 4 (sine and cosine of two coordinates), got {dim}"
        )
    check_choice("first", first, ("column", "row"))
    patch = torch.arange(height * width, dtype=torch.float64)
    row, column = patch.div(width, rounding_mode="floor"), patch % width
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    halves = []
    for coordinate in (column, row) if first == "column" else (row, column):
        angle = coordinate[:, None] * frequency
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=1).float()


def timm_blocks(depth: int, width: int, num_heads: int, mlp_ratio: float) -> nn.Sequential:
    """Timm's Transformer blocks with the biases of MAE's and I-JEPA's heads. (B, L, width)."""
    return nn.Sequential(
        *(
            Block(width, num_heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(depth)
        )
    )


def normal_within_one_deviation(weight: Tensor, std: float = 0.02) -> None:
    """Draw from a normal distribution that is cut at one standard deviation, as BEiT's code."""
    nn.init.trunc_normal_(weight, std=std, a=-std, b=std)


def initialize_blocks(blocks: nn.Module, init: Init) -> None:
    """Reinitialize all Linear layers inside `blocks`."""
    for name, part in blocks.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        if init == "clip" and not name.endswith("qkv"):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5))  # torch's own
        elif init == "beit":
            normal_within_one_deviation(part.weight)
        elif init in ("dino", "dinov2", "ijepa", "msn"):
            nn.init.trunc_normal_(part.weight, std=0.02)
        elif init == "moco_v3" and name.endswith("qkv"):
            bound = math.sqrt(6 / (part.out_features // 3 + part.in_features))
            nn.init.uniform_(part.weight, -bound, bound)
        else:
            nn.init.xavier_uniform_(part.weight)
        if part.bias is not None and (init != "clip" or name.endswith(("qkv", "attn.proj"))):
            nn.init.zeros_(part.bias)
        elif part.bias is not None:
            nn.init.uniform_(part.bias, -(part.in_features**-0.5), part.in_features**-0.5)
        if init == "beit" and name.endswith(("attn.proj", "mlp.fc2")):
            block = int(name.partition(".")[0]) + 1
            part.weight.data.div_(math.sqrt(2 * block))
