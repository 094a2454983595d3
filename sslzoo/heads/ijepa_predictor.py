"""I-JEPA's predictor: a narrow transformer from context tokens to target features.

Assran et al., CVPR 2023, https://arxiv.org/abs/2301.08243. Reference code: facebookresearch/ijepa
at 52c1ae9, src/models/vision_transformer.py. The blocks are timm's.

Shapes: B images, h x w patches, K context patches, M targets of R patches, D feature width.
"""

from __future__ import annotations

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

from sslzoo.checks import as_side, check_block, check_sides
from sslzoo.layers import initialize_blocks, sincos_positions
from sslzoo.layers.transformer import timm_blocks


class IJEPAPredictor(nn.Module):
    """Predict each target separately, from the context tokens and positional mask tokens.

    Args:
        token_dim: D, the encoder's `num_features`.
        grid: patches per side of the encoder's images, or (h, w) if they are not square.
        width: width of the predictor's tokens; 384 in the paper.
        depth: number of blocks; 12 for ViT-H in the paper, 6 by default in the code.
        num_heads: number of attention heads; the encoder's in the code, 16 for ViT-H.
        mlp_ratio: hidden width of the MLPs over `width`; 4 in the paper.

    Raises:
        ValueError: `width` is not a multiple of num_heads, or a value is out of range.
    """

    def __init__(
        self,
        token_dim: int,
        grid: int | tuple[int, int],
        width: int = 384,
        depth: int = 12,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        check_block(width, num_heads, mlp_ratio)
        sides = check_sides("grid", grid)
        self.token_dim, self.grid = token_dim, as_side(sides)
        self.embed = nn.Linear(token_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(*sides, width)[None], False)
        self.blocks = timm_blocks(depth, width, num_heads, mlp_ratio)
        self.norm = LayerNorm(width)
        self.project = nn.Linear(width, token_dim)
        initialize_blocks(self, "ijepa")
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Predict the features of the patches of every target.

        Args:
            tokens: (B, K, D), tokens of the encoder.
            context: (B, K) int64, positions of the context patches.
            targets: (B, M, R) int64, positions of the target patches.

        Returns:
            (B, M, R, D).
        """
        positions = self.pos_embed[0]
        x = self.embed(tokens) + positions[context]
        masked = self.mask_token + positions[targets.flatten(0, 1)]  # (B * M, R, width)
        x = torch.cat([x.repeat_interleave(targets.shape[1], 0), masked.to(x.dtype)], dim=1)
        x = self.norm(self.blocks(x))[:, context.shape[1] :]
        return self.project(x).unflatten(0, targets.shape[:2])
