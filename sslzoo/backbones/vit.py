"""Vision transformers: timm's, with access to tokens for self-supervised methods.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, https://arxiv.org/abs/2010.11929.
Initializations: facebookresearch/dino at 7c446df, moco-v3 at c349e6e, mae at efb2a80, ijepa at
52c1ae9. Parameters have timm's names, which are also those of that code.

Shapes: B images, a grid of h x w patches, L = h * w patches, D width, K visible patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import timm
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.checks import (
    as_side,
    check_at_least,
    check_choice,
    check_interval,
    check_mlp_ratio,
    check_positive,
    check_sides,
)
from sslzoo.layers import GlobalBatchNorm, Init, initialize_blocks, sincos_positions

Positions = Literal["learned", "mae", "moco_v3"]
Pool = Literal["token", "mean", "mean_before_norm"]
Sides = int | tuple[int, int]
Stem = Literal["linear", "conv"]


def resample_positions(
    positions: Tensor, height: int, width: int, grid: tuple[int, int] | None = None
) -> Tensor:
    """Resample positions to another grid by bicubic interpolation, as DINO does.

    DINO's scale is that of a grid larger by 0.1 patches, without antialiasing. timm's
    (`dynamic_img_size`) is exact and antialiased, so smaller grids differ.
    Shapes: (1, L, D) -> (1, height * width, D).

    Args:
        positions: (1, L, D).
        height: rows of the new grid.
        width: columns of the new grid.
        grid: rows and columns of the positions; None: they are equal.
    """
    grid = grid or (math.isqrt(positions.shape[1]),) * 2
    table = positions.unflatten(1, grid).permute(0, 3, 1, 2)
    scale = ((height + 0.1) / grid[0], (width + 0.1) / grid[1])
    moved = F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
    return moved.flatten(2).transpose(1, 2)


def conv_stem(projection: nn.Conv2d) -> nn.Sequential:
    """Convolutions of stride 2 to the grid of patches, and a 1 x 1 convolution to the width.

    The first has 2 / P of the width (1/8 for patches of 16 pixels), each other one twice the
    channels of the one before. Each has batch norm and ReLU.

    Args:
        projection: the patch projection that they replace, of P x P pixels.

    Raises:
        ValueError: P is not a power of 2 above 1, or the width not a multiple of P / 2.
    """
    patch, width = projection.kernel_size[0], projection.out_channels
    count = patch.bit_length() - 1
    if count < 1 or patch != 1 << count or width % (patch // 2):
        raise ValueError(
            "patch_size must be a power of 2 above 1, and the width a multiple of half of it, with "
            f"stem='conv', got {patch} and {width}"
        )
    wide, narrow = projection.in_channels, width * 2 // patch
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(wide, narrow, 3, 2, 1, bias=False), GlobalBatchNorm(narrow), nn.ReLU()]
        wide, narrow = narrow, narrow * 2
    return nn.Sequential(*layers, nn.Conv2d(wide, width, 1))


def without_drop_path(module: nn.Module) -> nn.Module:
    """Disable stochastic depth in place, as for a teacher."""
    for part in module.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
    return module


class ViT(nn.Module):
    """A timm VisionTransformer with access to its tokens.

    Shapes: images (B, C, H, W) whose sides are multiples of the patch; `forward` gives (B, D).

    Args:
        net: the VisionTransformer whose modules are used.
        pool: "token": the class token after the norm; "mean": the mean of the patches after the
            norm; "mean_before_norm": the mean of the unnormalized patches, then a new norm,
            `fc_norm` (MAE's fine-tuning).
        positions: "learned", or fixed sine-cosine embeddings in the channel order of "mae" or
            "moco_v3".
        init: initialization of that method's code: "dino" normal 0.02; "moco_v3" Xavier, separately
            for q, k and v; "mae" Xavier; "ijepa" normal 0.02, also for the patch projection.
        mask_token: whether to learn a mask token for `forward_tokens(mask=)` (iBOT).
        freeze_patches: whether the patch projection keeps its random initialization (MoCo v3).
        stem: "linear": one projection per patch; "conv": convolutions of stride 2 with batch norm
            (Xiao et al., Early Convolutions Help Transformers See Better, NeurIPS 2021,
            https://arxiv.org/abs/2106.14881), as in MoCo v3's vit_conv_small with 11 blocks.

    Attributes:
        num_features: D.
        grid: patches per side of the images that `net` was built for, or (h, w) if they are not
            square.
        patch_size: side of a patch in pixels.
        num_prefix: 1 with a class token, else 0.

    Raises:
        ValueError: `net` has parts that this class does not use, or an option is unknown.
    """

    def __init__(
        self,
        net: VisionTransformer,
        pool: Pool = "token",
        positions: Positions = "learned",
        init: Init = "dino",
        mask_token: bool = False,
        freeze_patches: bool = False,
        stem: Stem = "linear",
    ):
        super().__init__()
        _check(net, pool, positions, init)
        check_choice("stem", stem, get_args(Stem))
        if stem == "conv" and freeze_patches:
            raise ValueError("freeze_patches must be False with stem='conv', got True")
        parts: Any = net
        self.num_features: int = parts.embed_dim
        self._grid: tuple[int, int] = tuple(parts.patch_embed.grid_size)
        self.grid: Sides = as_side(self._grid)
        self.patch_size: int = parts.patch_embed.patch_size[0]
        self.num_prefix: int = parts.num_prefix_tokens
        self.pool = pool
        self.patch_embed, self.blocks, self.norm = parts.patch_embed, parts.blocks, parts.norm
        if stem == "conv":
            self.patch_embed.proj = conv_stem(self.patch_embed.proj)
        self.fc_norm: nn.Module = nn.Identity()
        if pool == "mean_before_norm":
            self.norm, self.fc_norm = nn.Identity(), nn.LayerNorm(self.num_features, eps=1e-6)
        self.cls_token, self.pos_embed = parts.cls_token, parts.pos_embed
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.num_features)) if mask_token else None
        _initialize(self, init)
        if positions != "learned":
            first: Literal["column", "row"] = "column" if positions == "mae" else "row"
            table = sincos_positions(*self._grid, self.num_features, first)
            table = F.pad(table, (0, 0, self.num_prefix, 0))  # the class token's is zero
            self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        if freeze_patches:
            self.patch_embed.requires_grad_(False)

    def forward_tokens(
        self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """All tokens after the final norm (if any), the class token (if any) first.

        Args:
            x: (B, C, H, W).
            mask: (B, L) bool; True patches are replaced by the mask token (iBOT).
            keep: (B, K) int64 patches to encode; the others are dropped after the positions are
                added (MAE, I-JEPA).

        Returns:
            (B, 1 + L, D), or (B, 1 + K, D) with `keep`; one token fewer without a class token.
        """
        return self.norm(self.blocks(self._embed(x, mask, keep)))

    def forward_blocks(self, x: Tensor, count: int) -> list[Tensor]:
        """All tokens after each of the last blocks and the norm, for DINO's linear evaluation.

        Args:
            x: (B, C, H, W).
            count: number of last blocks.

        Returns:
            Per block, in order: (B, 1 + L, D), or (B, L, D) without a class token.

        Raises:
            ValueError: there are fewer blocks.
        """
        check_interval("count", count, 1, len(self.blocks))
        tokens, outputs = self._embed(x), []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number >= len(self.blocks) - count:
                outputs.append(self.norm(tokens))
        return outputs

    def _embed(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """The input tokens of the first block; see `forward_tokens`."""
        patches = self.patch_embed(x)  # (B, h, w, D)
        height, width = patches.shape[1:3]
        patches = patches.flatten(1, 2)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("mask_token of the ViT must be True to use mask, got False")
            patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        prefix, positions = self.pos_embed.tensor_split([self.num_prefix], dim=1)
        if (height, width) != self._grid:
            positions = resample_positions(positions, height, width, self._grid)
        tokens = patches + positions
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))
        if self.cls_token is not None:
            # x.shape[0], since len(x) would make B a constant in torch.export
            first = (self.cls_token + prefix).expand(x.shape[0], -1, -1)
            tokens = torch.cat([first, tokens], dim=1)
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.forward_tokens(x)
        if self.pool == "token":
            return tokens[:, 0]
        return self.fc_norm(tokens[:, self.num_prefix :].mean(dim=1))

    def taken_from(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a pre-trained state dict to load before fine-tuning.

        It is the whole state dict, except that with "mean_before_norm" the pre-trained norm is
        dropped, and `fc_norm` keeps its initial state unless it was saved.

        Args:
            saved: a state dict.
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
        raise ValueError(
            f"net must be a plain VisionTransformer with positions, got {odd or 'no positions'}"
        )
    if net.patch_embed.output_fmt != "NHWC":
        raise ValueError("dynamic_img_size of the VisionTransformer must be True, got False")
    sides, patch = tuple(net.patch_embed.img_size), tuple(net.patch_embed.patch_size)
    if patch[0] != patch[1] or any(side % patch[0] for side in sides):
        raise ValueError(
            f"img_size must be a multiple of a square patch, got {as_side(sides)} with patches of "
            f"{patch[0]} x {patch[1]} pixels"
        )
    check_choice("pool", pool, get_args(Pool))
    if pool == "token" and not net.has_class_token:
        raise ValueError("pool must be a mean without a class token, got 'token'")
    check_choice("positions", positions, get_args(Positions))
    check_choice("init", init, get_args(Init))


def _initialize(vit: ViT, init: Init) -> None:
    initialize_blocks(vit.blocks, init)
    projection = vit.patch_embed.proj
    if isinstance(projection, nn.Sequential):  # a conv stem keeps torch's, as in MoCo v3's code
        pass
    elif init == "moco_v3":
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
    img_size: Sides | None = None,
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
    mlp_ratio: float | None = None,
    qkv_bias: bool | None = None,
    stem: Stem = "linear",
) -> nn.Module:
    """A randomly initialized timm VisionTransformer by name.

    Args:
        name: vit_tiny_patch16_224, vit_small_patch16_224, vit_base_patch16_224, ...
        img_size: side of the images in pixels for the positions, or (height, width); images of
            other sizes interpolate them. None: the name's.
        patch_size: side of a patch in pixels; None: the name's.
        num_heads: number of attention heads; None: the name's. MoCo v3's ViT-S has 12.
        in_chans: channels of the images.
        class_token: whether there is a class token; False in I-JEPA.
        drop_path_rate: stochastic depth rate of the last block, with a linear rise; see
            `without_drop_path`.
        pool: see `ViT`.
        positions: see `ViT`.
        init: see `ViT`.
        mask_token: see `ViT`.
        freeze_patches: see `ViT`.
        mlp_ratio: hidden width of the MLPs over that of the tokens; None: the name's, mostly 4.
        qkv_bias: whether the projections to q, k and v have a bias; None: the name's, mostly True.
        stem: see `ViT`.

    Raises:
        ValueError: the name is not that of a VisionTransformer, or a value is out of range.
    """
    asked = {
        "img_size": None if img_size is None else check_sides("img_size", img_size),
        "patch_size": patch_size,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
        "qkv_bias": qkv_bias,
    }
    if mlp_ratio is not None:
        check_positive("mlp_ratio", mlp_ratio)
    if not timm.is_model(name):
        close = timm.list_models("vit_*_patch*")[:5]
        raise ValueError(f"name must be a timm model, got {name!r}; such as {close}")
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
        raise ValueError(
            f"name must be a timm VisionTransformer, got {name}, a {type(net).__name__}"
        )
    return ViT(net, pool, positions, init, mask_token, freeze_patches, stem)


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

    Raises:
        ValueError: a value is out of range, or width not a multiple of num_heads.
    """
    for name, value in (("width", width), ("depth", depth), ("num_heads", num_heads)):
        check_at_least(name, value, 1)
    if width % num_heads:
        raise ValueError(f"width must be a multiple of num_heads {num_heads}, got {width}")
    check_mlp_ratio(mlp_ratio, width)
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
        drop_path_rate=drop_path_rate,
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
        dynamic_img_size=True,
    )
    return ViT(net, pool, positions, init, mask_token, freeze_patches, stem)
