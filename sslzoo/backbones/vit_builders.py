"""Build a `ViT`: timm's by name, or a small one by its sizes."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from timm.layers import PatchEmbed, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sslzoo.backbones.timm_models import Channels, create, start
from sslzoo.backbones.vit import NETS, Pool, Positions, Resample, Sides, Stem, ViT
from sslzoo.checks import (
    check_at_least,
    check_block,
    check_choice,
    check_positive,
    check_sides,
)
from sslzoo.layers import Init

DropPathForm = Literal["linear", "subset"]


def _subset_rate(form: DropPathForm, rate: float) -> float:
    check_choice("drop_path", form, get_args(DropPathForm))
    return rate if form == "subset" else 0.0


def _tokens_and_mlp(
    width: int, registers: int, swiglu: bool, layer_scale: float | None
) -> dict[str, Any]:
    """Timm's arguments for DINOv2's parts of a ViT."""
    check_at_least("registers", registers, 0)
    found: dict[str, Any] = {}
    if registers:
        found |= {"reg_tokens": registers, "no_embed_class": True}
    if swiglu:  # two thirds of 4 D, rounded up to a multiple of 8
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        found |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2 * hidden / width}
    if layer_scale is not None:
        found["init_values"] = layer_scale
    return found


def timm_vit(
    name: str = "vit_small_patch16_224",
    img_size: Sides | None = None,
    patch_size: int | None = None,
    num_heads: int | None = None,
    in_chans: int = 3,
    class_token: bool | None = None,
    drop_path_rate: float = 0.0,
    pool: Pool = "net",
    positions: Positions = "learned",
    init: Init = "dino",
    mask_token: bool = False,
    freeze_patches: bool = False,
    mlp_ratio: float | None = None,
    qkv_bias: bool | None = None,
    stem: Stem = "linear",
    pretrained: bool = False,
    weights: str | None = None,
    channels: Channels | None = None,
    resample: Resample | None = None,
    options: dict[str, Any] | None = None,
    drop_path: DropPathForm = "linear",
    registers: int = 0,
    swiglu: bool = False,
    layer_scale: float | None = None,
) -> nn.Module:
    """A timm vision transformer by name, randomly initialized or from released weights.

    Args:
        name: vit_small_patch16_224, vit_small_patch14_reg4_dinov2, vit_base_patch16_dinov3,
            vit_base_patch16_clip_224, vit_base_patch16_siglip_224, beit_base_patch16_224,
            deit_small_distilled_patch16_224, ..., or hf-hub:OWNER/REPOSITORY.
        img_size: side of the images in pixels for the positions, or (height, width); images of
            other sizes interpolate them. None: the name's.
        patch_size: side of a patch in pixels; None: the name's.
        num_heads: number of attention heads; None: the name's. MoCo v3's ViT-S has 12.
        in_chans: channels of the images.
        class_token: whether there is a class token; False in I-JEPA. None: the name's.
        drop_path_rate: stochastic depth rate; see `without_drop_path`.
        pool: see `ViT`; "net" is the name's own, mostly the class token.
        positions: see `ViT`.
        init: see `ViT`; weights that are loaded keep their values.
        mask_token: see `ViT`.
        freeze_patches: see `ViT`.
        mlp_ratio: hidden width of the MLPs over that of the tokens; None: the name's, mostly 4.
        qkv_bias: whether the projections to q, k and v have a bias; None: the name's, mostly True.
        stem: see `ViT`.
        pretrained: whether to load timm's weights of that name, from the Hugging Face Hub.
        weights: weights to load instead: a name in the zoo, a file, an address or a run directory;
            see `sslzoo.zoo.load_start_weights`.
        channels: how the patch filters are adapted to other channels; see there.
        resample: see `ViT`.
        options: further arguments of timm's model, such as {init_values: 0.1} for LayerScale.
        drop_path: "linear": per sample, with a linear rise from 0 to the last block's rate;
            "subset": DINOv2's, the same rate in every block, see `add_to_subset`.
        registers: number of register tokens to add to a net without; the class token then has its
            own position, see `ViT`.
        swiglu: whether the MLPs are DINOv2's SwiGLU, of two thirds of the hidden width.
        layer_scale: initial LayerScale; 1e-5 in DINOv2. None: the name's, mostly none.

    Raises:
        ValueError: the name is not that of such a net, or a value is out of range; the weights do
            not fit.
        OSError: the weights cannot be fetched.
    """
    asked = {
        "img_size": None if img_size is None else check_sides("img_size", img_size),
        "patch_size": patch_size,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
        "qkv_bias": qkv_bias,
        "class_token": class_token,
        "global_pool": "" if class_token is False else None,
    }
    if mlp_ratio is not None:
        check_positive("mlp_ratio", mlp_ratio)
    subset_rate = _subset_rate(drop_path, drop_path_rate)
    further = {key: value for key, value in asked.items() if value is not None}
    further |= {"dynamic_img_size": True, "drop_path_rate": 0.0 if subset_rate else drop_path_rate}
    width = 0
    if swiglu:
        with torch.device("meta"):
            width = create(name, False, in_chans, further, tokens=True).embed_dim
    further |= _tokens_and_mlp(width, registers, swiglu, layer_scale)
    net = create(name, pretrained, in_chans, {**further, **(options or {})}, tokens=True)
    if type(net) not in NETS or not isinstance(net.patch_embed, PatchEmbed):
        raise ValueError(
            f"name must be a timm VisionTransformer, DeiT, Eva or BEiT, got {name}, a "
            f"{type(net).__name__}; timm_backbone takes it"
        )
    drawn = None if pretrained or weights is not None else init
    vit = ViT(
        *(net, pool, positions, drawn, mask_token, freeze_patches, stem, resample),
        class_position=registers > 0,
        subset_rate=subset_rate,
    )
    start(vit, name, pretrained, weights, channels)
    return vit


def small_vit(
    img_size: Sides = 32,
    patch_size: int = 4,
    width: int = 128,
    depth: int = 6,
    num_heads: int = 4,
    in_chans: int = 3,
    class_token: bool = True,
    drop_path_rate: float = 0.0,
    pool: Pool = "token",
    positions: Positions = "learned",
    init: Init = "dino",
    mask_token: bool = False,
    freeze_patches: bool = False,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    stem: Stem = "linear",
    drop_path: DropPathForm = "linear",
    registers: int = 0,
    swiglu: bool = False,
    layer_scale: float | None = None,
    resample: Resample | None = None,
) -> nn.Module:
    """A ViT of any size, by default for images of 32 pixels on CPUs.

    The defaults have 1.2 M parameters.

    Args:
        img_size: see `timm_vit`.
        patch_size: side of a patch in pixels.
        width: D.
        depth: number of blocks.
        num_heads: number of attention heads.
        in_chans: channels of the images.
        class_token: see `timm_vit`.
        drop_path_rate: see `timm_vit`.
        pool: see `ViT`.
        positions: see `ViT`.
        init: see `ViT`.
        mask_token: see `ViT`.
        freeze_patches: see `ViT`.
        mlp_ratio: hidden width of the MLPs over D.
        qkv_bias: whether the projections to q, k and v have a bias.
        stem: see `ViT`.
        drop_path: see `timm_vit`.
        registers: see `timm_vit`.
        swiglu: see `timm_vit`.
        layer_scale: see `timm_vit`.
        resample: see `ViT`.

    Raises:
        ValueError: a value is out of range, or width not a multiple of num_heads.
    """
    for name, value in (("width", width), ("depth", depth), ("num_heads", num_heads)):
        check_at_least(name, value, 1)
    check_block(width, num_heads, mlp_ratio)
    subset_rate = _subset_rate(drop_path, drop_path_rate)
    parts = {"mlp_ratio": mlp_ratio, **_tokens_and_mlp(width, registers, swiglu, layer_scale)}
    net = VisionTransformer(
        img_size=check_sides("img_size", img_size),
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=0,
        global_pool="",
        embed_dim=width,
        depth=depth,
        num_heads=num_heads,
        class_token=class_token,
        drop_path_rate=0.0 if subset_rate else drop_path_rate,
        qkv_bias=qkv_bias,
        dynamic_img_size=True,
        **parts,
    )
    return ViT(
        *(net, pool, positions, init, mask_token, freeze_patches, stem, resample),
        class_position=registers > 0,
        subset_rate=subset_rate,
    )
