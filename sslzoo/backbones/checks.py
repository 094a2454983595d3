"""Checks of what a method needs of a backbone: tokens, and no parts that it would not train."""

from __future__ import annotations

from torch import nn


def check_masked_vit(backbone: nn.Module) -> None:
    """Refuse a backbone that has no mask token or no class token.

    Raises:
        ValueError: names what it lacks.
    """
    name = type(backbone).__name__
    if getattr(backbone, "mask_token", None) is None:
        raise ValueError(
            f"backbone must be a ViT with mask_token=True, got {name} without a mask token"
        )
    if getattr(backbone, "cls_token", None) is None:
        raise ValueError(f"backbone must have a class token, got {name} without it")
    check_pools_token(backbone)


def check_pools_token(backbone: nn.Module) -> None:
    """Refuse a ViT whose features are not the class token, which is what a method trains.

    Raises:
        ValueError: names its pooling.
    """
    pool = getattr(backbone, "pool", None)
    if not isinstance(pool, str):  # a network of timm's own
        pool = getattr(backbone, "global_pool", "token")
    if pool != "token":
        raise ValueError(
            "the features of the backbone must be its class token, which is trained, got pool "
            f"{pool!r} of {type(backbone).__name__}; set pool: token"
        )


def check_pooling(backbone: nn.Module) -> None:
    """Refuse a backbone whose pooling has parameters that training on its tokens or map misses.

    They would keep their initial values in `forward`, and DDP would wait for their gradients.

    Raises:
        ValueError: it has any.
    """
    pooling = ("fc_norm.", "attn_pool.", "head.")
    untrained = [name for name, _ in backbone.named_parameters() if name.startswith(pooling)]
    if untrained:
        raise ValueError(
            "backbone must have no parameters in its pooling, which would not be trained, got "
            f"{untrained} of {type(backbone).__name__}; set pool: mean (timm_vit), or options: "
            "{head_norm_first: true} (a ConvNeXt)"
        )
