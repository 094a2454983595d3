"""Swin transformers: timm's, with a mask token for masked image modeling.

Liu et al., Swin Transformer, ICCV 2021, https://arxiv.org/abs/2103.14030. Parameters have timm's
names.

Shapes: B images, a grid of h x w patches, C channels of the last stage's map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from sslzoo.backbones.timm_models import Channels, create, start
from sslzoo.backbones.vit import Sides
from sslzoo.checks import as_side, check_sides


class Swin(nn.Module):
    """A timm Swin transformer, of version 1 or 2, with a mask token and a feature map.

    Args:
        net: the net whose modules are used.
        mask_token: whether to learn a mask token for `forward_map(mask=)` (SimMIM), of initial
            standard deviation 0.02.

    Attributes:
        num_features: C.
        map_features: C.
        grid: patches per side of the images that `net` was built for, or (h, w).
        patch_size: side of a patch in pixels; 4.
        map_stride: side in pixels of a position of the map; 32 with four stages.

    Raises:
        ValueError: `net` is another.
    """

    def __init__(self, net: nn.Module, mask_token: bool = True):
        super().__init__()
        if not isinstance(net, SwinTransformer | SwinTransformerV2):
            raise ValueError(
                "net must be a timm SwinTransformer or SwinTransformerV2, got a "
                f"{type(net).__name__}"
            )
        parts: Any = net
        self.patch_embed, self.layers, self.norm = parts.patch_embed, parts.layers, parts.norm
        self.num_features = self.map_features = int(parts.num_features)
        self._grid: tuple[int, int] = tuple(parts.patch_embed.grid_size)
        self.grid: Sides = as_side(self._grid)
        self.patch_size: int = parts.patch_embed.patch_size[0]
        self.map_stride = self.patch_size * 2 ** (len(parts.layers) - 1)
        sides = [side * self.patch_size for side in self._grid]
        if any(side % self.map_stride for side in sides):
            raise ValueError(
                f"img_size must be a multiple of {self.map_stride} pixels, the stride of the last "
                f"stage, got {as_side((sides[0], sides[1]))}"
            )
        width = parts.patch_embed.proj.out_channels
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if mask_token else None
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward_map(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized map of the last stage.

        Args:
            x: (B, channels, H, W).
            mask: (B, h w) bool; True patches are replaced by the mask token.

        Returns:
            (B, C, H / map_stride, W / map_stride).

        Raises:
            ValueError: the images have another size, or there is no mask token.
        """
        size = tuple(side * self.patch_size for side in self._grid)
        if tuple(x.shape[2:]) != size:
            raise ValueError(
                f"images must have {size[0]} x {size[1]} pixels for this Swin, got {x.shape[2]} x "
                f"{x.shape[3]}; pass img_size"
            )
        patches = self.patch_embed(x)  # (B, h, w, width)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("mask_token of the Swin must be True to use mask, got False")
            token = self.mask_token[:, None].to(patches.dtype)
            patches = torch.where(mask.unflatten(1, self._grid)[..., None], token, patches)
        return self.norm(self.layers(patches)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the map. (B, channels, H, W) -> (B, C)."""
        return self.forward_map(x).mean((2, 3))

    def taken_from(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a pre-trained state dict to load before fine-tuning: no unused mask token."""
        unused = self.mask_token is None
        return {name: x for name, x in saved.items() if not (unused and name == "mask_token")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the layers, timm's, for `LayerDecay`."""
        return cast(Any, SwinTransformer).group_matcher(self, coarse)  # type: ignore[no-any-return]

    def no_weight_decay(self) -> set[str]:
        """Names of the tables of relative positions, for `LayerDecay`."""
        return {name for name, _ in self.named_parameters() if name.endswith("bias_table")}


def timm_swin(
    name: str = "swin_base_patch4_window7_224",
    img_size: Sides | None = None,
    window_size: int | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    mask_token: bool = True,
    pretrained: bool = False,
    weights: str | None = None,
    channels: Channels | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A timm Swin transformer by name, with a mask token.

    Args:
        name: swin_tiny_patch4_window7_224, swin_base_patch4_window7_224, swinv2_..., or
            hf-hub:OWNER/REPOSITORY.
        img_size: side of the images in pixels, or (height, width), which is fixed; None: the
            name's. SimMIM pre-trains at 192.
        window_size: patches per side of an attention window; None: the name's. 6 at 192 pixels.
        in_chans: channels of the images.
        drop_path_rate: stochastic depth rate of the last block; 0 in SimMIM's pre-training.
        mask_token: see `Swin`.
        pretrained: whether to load timm's weights of that name, from the Hugging Face Hub.
        weights: weights to load instead: a name in the zoo, a file, an address or a run directory;
            see `sslzoo.zoo.load_start_weights`.
        channels: how the patch filters are adapted to other channels; see there.
        options: further arguments of timm's model, such as {embed_dim: 48, depths: [2, 2]}.

    Raises:
        ValueError: the name is not that of such a net, or a value is out of range; the weights do
            not fit.
        OSError: the weights cannot be fetched.
    """
    asked: dict[str, Any] = {"drop_path_rate": drop_path_rate}
    if img_size is not None:
        asked["img_size"] = check_sides("img_size", img_size)
    if window_size is not None:
        asked["window_size"] = window_size
    net = create(name, pretrained, in_chans, {**asked, **(options or {})})
    swin = Swin(net, mask_token)
    start(swin, name, pretrained, weights, channels)
    return swin
