"""Feature maps of any encoder: patch tokens as a map, or the map of a convolutional network.

Shapes: B images of C channels, H x W pixels, a map of h x w positions and D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.backbones.towers import Towers
from sslzoo.checks import check_at_least

Mapper = Callable[[Tensor], Tensor]


def center_pad(images: Tensor, patch: Sequence[int]) -> Tensor:
    """Pad with zeros to multiples of the patch, an odd pixel at the bottom or right.

    DINOv2's CenterPadding (facebookresearch/dinov2 at b8931f7, notebooks/semantic_segmentation).
    Shapes: (B, C, H, W) -> (B, C, H', W').

    Args:
        images: (B, C, H, W).
        patch: height and width of a patch in pixels.
    """
    tall, wide = (-side % p for side, p in zip(images.shape[2:], patch, strict=True))
    return F.pad(images, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))


def patch_of(encoder: nn.Module) -> tuple[int, int]:
    """Height and width of a vision transformer's patches in pixels; (1, 1) for other encoders."""
    net: Any = encoder_of(encoder)
    patch: Any = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    patch = getattr(net, "patch_size", 1) if patch is None else patch
    return (patch, patch) if isinstance(patch, int) else tuple(patch)


def encoder_of(module: nn.Module) -> nn.Module:
    """The encoder of a method: what its `encoder()` gives, or the module itself."""
    net: Any = module
    give = getattr(net, "encoder", None)
    return net if give is None or isinstance(give, nn.Module) else give()


@torch.no_grad()
def feature_map(encoder: nn.Module, images: Tensor, blocks: int = 1) -> Tensor:
    """Feature map of an encoder, without gradient.

    A vision transformer (`sslzoo.backbones.ViT` or timm's) gives its patch tokens after the final
    norm, of images that are padded by `center_pad`; a network with `forward_map` gives that map;
    another timm network its last one; `Towers` the towers' maps, concatenated at the finest
    resolution. A `LightningModule` with `encoder()` stands for that encoder.

    Args:
        encoder: the encoder, in the mode to be used.
        images: (B, C, H, W), preprocessed as the encoder expects.
        blocks: number of a ViT's last blocks whose tokens are concatenated; 4 in DINOv2's +ms.

    Returns:
        (B, D, h, w); D is `blocks` times the width.

    Raises:
        ValueError: the encoder has no map, or not so many blocks.
    """
    return map_of(encoder, blocks)(images)


def map_of(encoder: nn.Module, blocks: int = 1) -> Mapper:
    """The function behind `feature_map`, (B, C, H, W) -> (B, D, h, w).

    Raises:
        ValueError: see `feature_map`.
    """
    check_at_least("blocks", blocks, 1)
    net: Any = encoder_of(encoder)
    if isinstance(net, Towers):
        parts = [map_of(tower, blocks) for tower in net.towers]
        return lambda images: _aligned(
            [f(x) for f, x in zip(parts, net.split(images), strict=True)]
        )
    if hasattr(net, "patch_embed") and (
        hasattr(net, "forward_tokens") or hasattr(net, "forward_features")
    ):
        return lambda images: _tokens(net, center_pad(images, patch_of(net)), blocks)
    name = next((x for x in ("forward_map", "forward_features") if hasattr(net, x)), None)
    if name is None:
        raise ValueError(
            "the encoder must have forward_map (feature maps), or be a vision transformer of "
            f"sslzoo or timm, for dense evaluation, got {type(net).__name__}"
        )
    if blocks > 1:
        raise ValueError(
            f"blocks must be 1 for an encoder that is no vision transformer, got {blocks} for "
            f"{type(net).__name__}"
        )
    return lambda images: check_map(getattr(net, name)(images), f"{type(net).__name__}.{name}")


def _tokens(net: Any, images: Tensor, blocks: int) -> Tensor:
    """Patch tokens of a ViT after the norm, as a map."""
    patch = patch_of(net)
    sides = [side // p for side, p in zip(images.shape[2:], patch, strict=True)]
    count = sides[0] * sides[1]
    if blocks == 1:
        forward = getattr(net, "forward_tokens", None) or net.forward_features
        outputs = [forward(images)]
    elif hasattr(net, "forward_blocks"):
        outputs = net.forward_blocks(images, blocks)
    elif hasattr(net, "get_intermediate_layers"):
        outputs = net.get_intermediate_layers(images, n=blocks, norm=True)
    else:
        raise ValueError(f"blocks must be 1 for {type(net).__name__}, got {blocks}")
    if outputs[0].ndim == 4:  # timm's hierarchical transformers, (B, h, w, D)
        return torch.cat([x.permute(0, 3, 1, 2) for x in outputs], dim=1)
    return torch.cat([x[:, -count:].mT.unflatten(2, sides) for x in outputs], dim=1)


def _aligned(maps: list[Tensor]) -> Tensor:
    """Concatenate maps at the finest resolution."""
    size = max((tuple(m.shape[2:]) for m in maps), key=lambda side: side[0] * side[1])
    resized = [
        m if tuple(m.shape[2:]) == size else F.interpolate(m, size, mode="bilinear") for m in maps
    ]
    return torch.cat(resized, dim=1)


def check_map(found: Any, who: str) -> Tensor:
    """Refuse anything but a map (B, D, h, w)."""
    if not isinstance(found, Tensor) or found.ndim != 4:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the feature map of {who} must be (B, D, h, w), got {got}")
    return found


class RawPixels(nn.Module):
    """An encoder whose map is the pixels of each patch: what a probe can do without features.

    Shapes: (B, C, H, W) -> (B, C P P, H / P, W / P) by `forward_map`.

    Args:
        patch: P, side of a patch in pixels.
        in_chans: C.
    """

    def __init__(self, patch: int = 16, in_chans: int = 3) -> None:
        super().__init__()
        check_at_least("patch", patch, 1)
        self.patch = patch
        self.num_features = in_chans * patch * patch

    def forward_map(self, x: Tensor) -> Tensor:
        """The pixels of each patch. Shapes: (B, C, H, W) -> (B, C P P, H / P, W / P)."""
        return F.pixel_unshuffle(center_pad(x, (self.patch, self.patch)), self.patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_map(x).mean((2, 3))
