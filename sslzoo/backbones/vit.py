"""Vision transformers: timm's blocks, with what self-supervised methods need of the tokens.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, https://arxiv.org/abs/2010.11929.
Initializations: facebookresearch/dino at 7c446df, moco-v3 at c349e6e, mae at efb2a80, ijepa at
52c1ae9. Parameters have timm's names, which are also those of that code.

Shapes: B images, a grid of g x g patches, L = g * g, D width, K patches kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import timm
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.layers import Init, initialize_blocks, sincos_positions

Positions = Literal["learned", "mae", "moco_v3"]
Pool = Literal["token", "mean", "mean_before_norm"]


def resample_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """Positions of a square grid for another one, bicubic. (1, L, D) -> (1, height * width, D).

    DINO's: the scale is that of a grid larger by a tenth of a patch, and nothing is antialiased;
    timm's (`dynamic_img_size`) has the exact scale and antialiases. They differ for smaller grids.
    """
    side = math.isqrt(positions.shape[1])
    square = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = ((height + 0.1) / side, (width + 0.1) / side)
    moved = F.interpolate(square, scale_factor=scale, mode="bicubic", align_corners=False)
    return moved.flatten(2).transpose(1, 2)


def without_drop_path(module: nn.Module) -> nn.Module:
    """Switch stochastic depth off, in place: a teacher's copy of a student has none."""
    for part in module.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
    return module


class ViT(nn.Module):
    """The parts of a timm VisionTransformer, with access to its tokens.

    Shapes: images (B, C, H, W) of any multiple of the patch; `forward` gives (B, D).

    Args:
        net: whose patch projection, class token, positions, blocks and norm are used.
        pool: "token": the class token after the norm; "mean": the patches' mean after it;
            "mean_before_norm": a norm of its own (`fc_norm`) after their mean, and no other, so
            that tokens have none (MAE's fine-tuning).
        positions: "learned", or fixed sines and cosines as "mae" or "moco_v3" orders them.
        init: the weights' distribution, of that method's code: "dino" normal 0.02; "moco_v3"
            Xavier, q, k and v each by itself; "mae" Xavier; "ijepa" normal 0.02, patches too.
        mask_token: whether there is one for `forward_tokens(mask=)` (iBOT).
        freeze_patches: whether the patch projection stays as it is drawn (MoCo v3).

    Attributes:
        num_features: D.
        grid: g, patches along a side of the images that `net` was built for.
        patch_size: pixels of a patch's side.
        num_prefix: 1 where there is a class token, else 0.

    Raises:
        ValueError: for a net with what this class would leave out, or unknown options.
    """

    def __init__(
        self,
        net: VisionTransformer,
        pool: Pool = "token",
        positions: Positions = "learned",
        init: Init = "dino",
        mask_token: bool = False,
        freeze_patches: bool = False,
    ):
        super().__init__()
        _check(net, pool, positions, init)
        parts: Any = net
        self.num_features: int = parts.embed_dim
        self.grid: int = parts.patch_embed.grid_size[0]
        self.patch_size: int = parts.patch_embed.patch_size[0]
        self.num_prefix: int = parts.num_prefix_tokens
        self.pool = pool
        self.patch_embed, self.blocks, self.norm = parts.patch_embed, parts.blocks, parts.norm
        self.fc_norm: nn.Module = nn.Identity()
        if pool == "mean_before_norm":
            self.norm, self.fc_norm = nn.Identity(), nn.LayerNorm(self.num_features, eps=1e-6)
        self.cls_token, self.pos_embed = parts.cls_token, parts.pos_embed
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.num_features)) if mask_token else None
        _initialize(self, init)
        if positions != "learned":
            first: Literal["column", "row"] = "column" if positions == "mae" else "row"
            table = sincos_positions(self.grid, self.grid, self.num_features, first)
            table = F.pad(table, (0, 0, self.num_prefix, 0))  # the class token's is zero
            self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        if freeze_patches:
            self.patch_embed.requires_grad_(False)

    def forward_tokens(
        self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Every token after the final norm, if any, the class token first where there is one.

        Args:
            x: (B, C, H, W).
            mask: (B, L) bool; where True the mask token stands in the patch's place (iBOT).
            keep: (B, K) int64, patches that are encoded; the others are left out once all have
                their positions (MAE, I-JEPA).

        Returns:
            (B, 1 + L, D), or (B, 1 + K, D) with `keep`; without the 1 where no class token is.
        """
        return self.norm(self.blocks(self._embed(x, mask, keep)))

    def forward_blocks(self, x: Tensor, count: int) -> list[Tensor]:
        """Every token behind each of the last blocks, after the norm: DINO's linear features.

        Args:
            x: (B, C, H, W).
            count: of blocks, the last last.

        Returns:
            (B, 1 + L, D) each, or (B, L, D) without a class token.

        Raises:
            ValueError: there are not as many blocks.
        """
        if not 1 <= count <= len(self.blocks):
            raise ValueError(f"1 to {len(self.blocks)} last blocks wanted, got {count}")
        tokens, behind = self._embed(x), []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number >= len(self.blocks) - count:
                behind.append(self.norm(tokens))
        return behind

    def _embed(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """The tokens that the first block reads; see `forward_tokens`."""
        patches = self.patch_embed(x)  # (B, h, w, D)
        height, width = patches.shape[1:3]
        patches = patches.flatten(1, 2)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("mask= wants a ViT with mask_token=True, got one without")
            patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        prefix, places = self.pos_embed.tensor_split([self.num_prefix], dim=1)
        if (height, width) != (self.grid, self.grid):
            places = resample_positions(places, height, width)
        tokens = patches + places
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))
        if self.cls_token is not None:
            # x.shape[0] and not len(x), which makes B a constant in torch.export
            first = (self.cls_token + prefix).expand(x.shape[0], -1, -1)
            tokens = torch.cat([first, tokens], dim=1)
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.forward_tokens(x)
        if self.pool == "token":
            return tokens[:, 0]
        return self.fc_norm(tokens[:, self.num_prefix :].mean(dim=1))

    def taken_from(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this net starts from, of a pre-trained one's state.

        All of it, but with "mean_before_norm" not the norm that is not here: the new one starts as
        it is, unless a net of this kind was saved.

        Args:
            saved: a tensor for each name.
        """
        if self.pool != "mean_before_norm" or any(name.startswith("fc_norm.") for name in saved):
            return dict(saved)
        taken = {name: x for name, x in saved.items() if not name.startswith("norm.")}
        new = self.fc_norm.state_dict(prefix="fc_norm.")
        return {**taken, **new}


def _check(net: VisionTransformer, pool: str, positions: str, init: str) -> None:
    odd = [
        name
        for name, extra in (
            ("reg_token", net.num_reg_tokens),
            ("norm_pre", not isinstance(net.norm_pre, nn.Identity)),
            ("patch_drop", not isinstance(net.patch_drop, nn.Identity)),
            ("pos_drop", net.pos_drop.p),
            ("no_embed_class", net.no_embed_class and net.has_class_token),
            ("attn_pool", net.attn_pool is not None),
        )
        if extra
    ]
    if odd or net.pos_embed is None:
        raise ValueError(f"a plain VisionTransformer with positions wanted, got {odd or 'none'}")
    if net.patch_embed.output_fmt != "NHWC":
        raise ValueError("a VisionTransformer with dynamic_img_size=True wanted, got False")
    grid = net.patch_embed.grid_size
    if grid[0] != grid[1]:
        raise ValueError(f"a square grid of patches wanted, got {tuple(grid)}")
    pools = ("token", "mean", "mean_before_norm")
    if pool not in pools or (pool == "token" and not net.has_class_token):
        raise ValueError(
            f"pool is 'mean', 'mean_before_norm', or 'token' with a class token, got {pool!r}"
        )
    if positions not in ("learned", "mae", "moco_v3"):
        raise ValueError(f"positions is 'learned', 'mae' or 'moco_v3', got {positions!r}")
    if init not in ("dino", "moco_v3", "mae", "ijepa"):
        raise ValueError(f"init is 'dino', 'moco_v3', 'mae' or 'ijepa', got {init!r}")


def _initialize(vit: ViT, init: Init) -> None:
    initialize_blocks(vit.blocks, init)
    projection = vit.patch_embed.proj
    if init == "moco_v3":
        bound = math.sqrt(6 / (projection.weight[0].numel() + vit.num_features))
        nn.init.uniform_(projection.weight, -bound, bound)
        nn.init.zeros_(projection.bias)
    elif init == "mae":
        nn.init.xavier_uniform_(projection.weight.flatten(1))
    elif init == "ijepa":
        nn.init.trunc_normal_(projection.weight, std=0.02)
        nn.init.zeros_(projection.bias)
    if vit.cls_token is not None:
        nn.init.trunc_normal_(vit.cls_token, std=1e-6 if init == "moco_v3" else 0.02)
    nn.init.trunc_normal_(vit.pos_embed, std=0.02)


def timm_vit(
    name: str = "vit_small_patch16_224",
    img_size: int | None = None,
    patch_size: int | None = None,
    num_heads: int | None = None,
    in_chans: int = 3,
    class_token: bool = True,
    drop_path_rate: float = 0.0,
    pool: Pool = "token",
    positions: Positions = "learned",
    init: Init = "dino",
    mask_token: bool = False,
    freeze_patches: bool = False,
) -> nn.Module:
    """A timm VisionTransformer by name, drawn anew. See `ViT` for the options that are not here.

    Args:
        name: vit_tiny_patch16_224, vit_small_patch16_224, vit_base_patch16_224, ...
        img_size: pixels for which positions are made; other sizes interpolate them.
        patch_size: other than the name's.
        num_heads: other than the name's; MoCo v3's ViT-S has 12.
        in_chans: channels of the images.
        class_token: I-JEPA has none.
        drop_path_rate: stochastic depth, rising over the blocks to this; see `without_drop_path`.
        pool: see `ViT`.
        positions: see `ViT`.
        init: see `ViT`.
        mask_token: see `ViT`.
        freeze_patches: see `ViT`.
    """
    asked = {"img_size": img_size, "patch_size": patch_size, "num_heads": num_heads}
    if not timm.is_model(name):
        close = timm.list_models("vit_*_patch*")[:5]
        raise ValueError(f"timm has no model {name!r}; names that are meant: {close}")
    net = timm.create_model(
        name,
        num_classes=0,
        global_pool="",
        in_chans=in_chans,
        class_token=class_token,
        drop_path_rate=drop_path_rate,
        dynamic_img_size=True,
        **{key: value for key, value in asked.items() if value is not None},
    )
    if type(net) is not VisionTransformer:
        raise ValueError(f"a timm VisionTransformer wanted, {name} is a {type(net).__name__}")
    return ViT(net, pool, positions, init, mask_token, freeze_patches)


def small_vit(
    img_size: int = 32,
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
) -> nn.Module:
    """A ViT for images of about 32 pixels on a CPU: 1.2 M parameters. Any size, by its numbers.

    Args:
        img_size: see `timm_vit`.
        patch_size: pixels of a patch's side.
        width: D.
        depth: blocks.
        num_heads: attention heads of each.
        in_chans: channels of the images.
        class_token: see `timm_vit`.
        drop_path_rate: see `timm_vit`.
        pool: see `ViT`.
        positions: see `ViT`.
        init: see `ViT`.
        mask_token: see `ViT`.
        freeze_patches: see `ViT`.
    """
    net = VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=0,
        global_pool="",
        embed_dim=width,
        depth=depth,
        num_heads=num_heads,
        class_token=class_token,
        drop_path_rate=drop_path_rate,
        dynamic_img_size=True,
    )
    return ViT(net, pool, positions, init, mask_token, freeze_patches)
