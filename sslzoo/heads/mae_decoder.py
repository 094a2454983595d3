"""MAE's decoder: a light transformer from the visible tokens to the pixels of all patches.

He, Chen, Xie, Li, Dollar and Girshick, CVPR 2022, https://arxiv.org/abs/2111.06377. Reference
code: facebookresearch/mae at efb2a80, models_mae.py. The blocks are timm's.

Shapes: B images, h x w patches of P x P pixels and C channels, L = h * w, K visible patches.
"""

from __future__ import annotations

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.checks import as_side, check_block, check_sides
from sslzoo.layers import initialize_blocks, sincos_positions
from sslzoo.layers.transformer import timm_blocks


class MAEDecoder(nn.Module):
    """Insert mask tokens at the masked positions, and predict the pixels of all patches.

    Args:
        token_dim: width of the encoder's tokens, its `num_features`.
        grid: patches per side of the encoder's images, or (h, w) if they are not square.
        patch_size: P of the encoder.
        width: width of the decoder's tokens; 512 in the paper.
        depth: number of blocks; 8 in the paper.
        num_heads: number of attention heads; 16 in the paper.
        channels: C.
        mlp_ratio: hidden width of the MLPs over `width`; 4 in the paper.

    Raises:
        ValueError: `width` is not a multiple of num_heads, or a value is out of range.
    """

    def __init__(
        self,
        token_dim: int,
        grid: int | tuple[int, int],
        patch_size: int,
        width: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        channels: int = 3,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        check_block(width, num_heads, mlp_ratio)
        sides = check_sides("grid", grid)
        self.token_dim, self.grid, self.patch_size = token_dim, as_side(sides), patch_size
        self.embed = nn.Linear(token_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        table = F.pad(sincos_positions(*sides, width), (0, 0, 1, 0))  # zeros for the class token
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        self.blocks = timm_blocks(depth, width, num_heads, mlp_ratio)
        self.norm = LayerNorm(width)
        self.predict = nn.Linear(width, patch_size**2 * channels)
        initialize_blocks(self, "mae")
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """Predict the pixels of every patch.

        Args:
            tokens: (B, 1 + K, token_dim), the class token first.
            restore: (B, L) int64; patch j is number restore[j] of the visible, then masked ones.

        Returns:
            (B, L, P * P * C), channels last.
        """
        x = self.embed(tokens)
        num_masked = restore.shape[1] + 1 - x.shape[1]
        mask_tokens = self.mask_token.to(x.dtype).expand(len(x), num_masked, -1)
        patches = torch.cat([x[:, 1:], mask_tokens], dim=1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.pos_embed
        return self.predict(self.norm(self.blocks(x))[:, 1:])
