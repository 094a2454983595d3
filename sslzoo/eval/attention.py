"""Attention maps: what the class token of a vision transformer looks at, head by head.

Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294, figure 1.
Reference code: facebookresearch/dino at 7c446df, visualize_attention.py.

Shapes: B images, A heads of the last block, h x w patches, C channels of H x W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.eval.features import eval_mode


@torch.no_grad()
def cls_attention(vit: nn.Module, images: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block.

    Any ViT whose blocks are timm's: queries and keys are computed again from what goes into the
    block's attention, so that fused kernels, which keep no weights, may stay on.

    Args:
        vit: `sslzoo.backbones.ViT`, or a timm VisionTransformer; left in the mode it was in.
        images: (B, C, H, W), as it takes them.

    Returns:
        (B, A, h, w) in [0, 1]; what the class token gives itself (and registers) is left out.

    Raises:
        ValueError: for a module without such blocks, or without a class token.
    """
    net: Any = vit
    attention: Any = getattr(net.blocks[-1], "attn", None) if hasattr(net, "blocks") else None
    prefix = getattr(net, "num_prefix", getattr(net, "num_prefix_tokens", 0))
    if not isinstance(getattr(attention, "qkv", None), nn.Linear) or not prefix:
        name = type(vit).__name__
        raise ValueError(f"a ViT of timm's blocks with a class token wanted, got {name}")
    seen: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with eval_mode(vit):
            vit(images)
            q, k, _ = attention.qkv(seen[0]).unflatten(2, (3, attention.num_heads, -1)).unbind(2)
            q, k = attention.q_norm(q[:, 0]), attention.k_norm(k)  # (B, A, E), (B, N, A, E)
    finally:
        hook.remove()
    weights = torch.einsum("bae,bnae->ban", q * attention.scale, k).float().softmax(dim=-1)
    sides = [side // patch for side, patch in zip(images.shape[2:], _patch(net), strict=True)]
    return weights[..., prefix:].unflatten(2, sides)


def _patch(net: Any) -> tuple[int, int]:
    return tuple(net.patch_embed.patch_size)  # type: ignore[return-value]


def attention_picture(images: Tensor, attention: Tensor) -> Image.Image:
    """A row for each image: itself, the heads' mean, then each head. Each map to its own maximum.

    Args:
        images: (B, C, H, W) of 1 or 3 channels; stretched to the range of a picture.
        attention: (B, A, h, w).
    """
    x = images.detach().float().cpu()
    low, high = (x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True))
    x = ((x - low) / (high - low).clamp_min(1e-12)).expand(-1, 3, -1, -1)
    maps = attention.detach().float().cpu()
    maps = torch.cat([maps.mean(dim=1, keepdim=True), maps], dim=1)
    maps = F.interpolate(maps / maps.amax((2, 3), keepdim=True), images.shape[2:], mode="nearest")
    tiles = torch.cat([x[:, None], maps[:, :, None].expand(-1, -1, 3, -1, -1)], dim=1)
    tiles = F.pad(tiles, (1, 1, 1, 1), value=1.0)  # (B, 2 + A, 3, H + 2, W + 2)
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((sheet * 255).round().to(torch.uint8).numpy().astype(np.uint8))
