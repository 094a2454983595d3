"""Initializations of a `ViT`, each that of one method's code.

Reference code: facebookresearch/dino at 7c446df, dinov2 at b8931f7, moco-v3 at c349e6e, mae at
efb2a80, ijepa at 52c1ae9.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from sslzoo.layers import Init, initialize_blocks
from sslzoo.layers.transformer import normal_within_one_deviation


def initialize_vit(vit: Any, init: Init) -> None:
    """Initialize the blocks, the patch projection, the tokens and the positions of a `ViT`.

    Args:
        vit: changed in place.
        init: see `ViT`.
    """
    initialize_blocks(vit.blocks, init)
    projection = vit.patch_embed.proj
    if not isinstance(projection, nn.Sequential):  # a conv stem keeps torch's, as in MoCo v3's code
        _initialize_patches(projection, init)
    if init == "clip":
        for table in (vit.cls_token, vit.pos_embed):
            if table is not None:
                nn.init.normal_(table, std=vit.num_features**-0.5)
        return
    if vit.cls_token is not None:
        patches = vit.patch_embed.num_patches
        own = vit.pos_embed is None or vit.pos_embed.shape[1] > patches  # has its own position
        small = init == "moco_v3" or (init == "dinov2" and own)
        nn.init.trunc_normal_(vit.cls_token, std=1e-6 if small else 0.02)
    registers = getattr(vit, "reg_token", None)
    if init == "dinov2" and registers is not None:
        nn.init.normal_(registers, std=1e-6)
    if vit.pos_embed is not None:
        nn.init.trunc_normal_(vit.pos_embed, std=0.02)
    if init == "beit":
        for table in (vit.cls_token, vit.pos_embed, vit.mask_token):
            if table is not None:
                normal_within_one_deviation(table)


def _initialize_patches(projection: nn.Conv2d, init: Init) -> None:
    weight = projection.weight
    if init == "moco_v3":
        bound = math.sqrt(6 / (weight[0].numel() + projection.out_channels))
        nn.init.uniform_(weight, -bound, bound)
    elif init == "mae":
        nn.init.xavier_uniform_(weight.flatten(1))
    elif init == "ijepa":
        nn.init.trunc_normal_(weight, std=0.02)
    elif init == "beit":
        normal_within_one_deviation(weight, std=0.02)
    elif init == "msn":
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    elif init == "clip":
        projection.reset_parameters()
    if projection.bias is not None and init in ("moco_v3", "ijepa", "beit", "msn"):
        nn.init.zeros_(projection.bias)
