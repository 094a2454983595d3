"""Attention maps: attention of a vision transformer's class token to the patches, per head.

Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294, figure 1.
Reference code: facebookresearch/dino at 7c446df, visualize_attention.py.

Shapes: B images, A heads of the last block, h x w patches, C channels of H x W pixels.
"""

from __future__ import annotations

import math
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

    It works for any timm ViT with a class token (also with rotary embeddings, registers and other
    extras): the weights are those that the last block itself computes, without its fused kernel.

    Args:
        vit: `sslzoo.backbones.ViT`, or a timm model; its train or eval mode is restored.
        images: (B, C, H, W), preprocessed as the model expects.

    Returns:
        (B, A, h, w) in [0, 1]; its attention to itself (and to registers) is left out.

    Raises:
        ValueError: for a module without such blocks, or without a class token.
    """
    net: Any = vit
    attention: Any = getattr(net.blocks[-1], "attn", None) if hasattr(net, "blocks") else None
    known = all(hasattr(attention, name) for name in ("fused_attn", "attn_drop"))
    known &= hasattr(getattr(net, "patch_embed", None), "dynamic_feat_size")
    if not known or getattr(net, "cls_token", None) is None:
        name = type(vit).__name__
        raise ValueError(f"vit must be a timm ViT with a class token, got {name}")
    seen: list[Tensor] = []
    hook = attention.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        with eval_mode(vit):
            vit(images)
    finally:
        attention.fused_attn = fused
        hook.remove()
    weights = seen[0][:, :, 0].float()  # (B, A, N) of the class token, which comes first
    sides = net.patch_embed.dynamic_feat_size(tuple(images.shape[2:]))
    return weights[..., -math.prod(sides) :].unflatten(2, sides)


def attention_picture(images: Tensor, attention: Tensor) -> Image.Image:
    """Picture with one row per image: the image, the heads' mean, then each head.

    Each map is scaled to its own maximum.

    Args:
        images: (B, C, H, W) of 1 or 3 channels; rescaled to the range of a picture.
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
