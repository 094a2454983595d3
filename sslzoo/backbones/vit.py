"""Vision transformers: timm's, with access to tokens for self-supervised methods.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, https://arxiv.org/abs/2010.11929.
Resampling of positions: facebookresearch/dino at 7c446df, dinov2 at b8931f7. Parameters have timm's
names, which are also those of that code.

Shapes: B images, a grid of h x w patches, L = h * w patches, D width, K visible patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from timm.layers import global_pool_nlc
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.backbones.drop_path import drop_subsets
from sslzoo.backbones.vit_init import initialize_vit
from sslzoo.checks import as_side, check_choice, check_interval
from sslzoo.layers import GlobalBatchNorm, Init, sincos_positions

Positions = Literal["learned", "mae", "moco_v3"]
Pool = Literal["net", "token", "mean", "mean_before_norm"]
Resample = Literal["dino", "exact", "antialias"]
Sides = int | tuple[int, int]
Stem = Literal["linear", "conv"]
_TABLE = "relative_position_bias_table"
NETS = (VisionTransformer, VisionTransformerDistilled, Eva, Beit)


def resample_positions(
    positions: Tensor,
    height: int,
    width: int,
    grid: tuple[int, int] | None = None,
    how: Resample = "dino",
) -> Tensor:
    """Resample positions to another grid by bicubic interpolation.

    Shapes: (1, L, D) -> (1, height * width, D).

    Args:
        positions: (1, L, D).
        height: rows of the new grid.
        width: columns of the new grid.
        grid: rows and columns of the positions; None: they are equal.
        how: "dino": the scale is that of a grid larger by 0.1 patches, without antialiasing, as in
            DINO and in DINOv2 without registers; "exact": that of the grid, as in MSN; "antialias":
            exact and antialiased, as in DINOv2 with registers and in timm.
    """
    grid = grid or (math.isqrt(positions.shape[1]),) * 2
    table = positions.unflatten(1, grid).permute(0, 3, 1, 2)
    if how != "dino":
        size, smooth = (height, width), how == "antialias"
        moved = F.interpolate(table, size, mode="bicubic", align_corners=False, antialias=smooth)
    else:
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


class ViT(nn.Module):
    """A timm vision transformer with access to its tokens.

    Shapes: images (B, C, H, W) whose sides are multiples of the patch; `forward` gives (B, D). The
    prefix is the R tokens before the patches: class token, then distillation or register tokens.

    Args:
        net: the net whose modules are used: a VisionTransformer (also with registers, LayerScale,
            SwiGLU, a norm before the blocks, attention pooling), a distilled DeiT, an Eva (rotary
            positions; DINOv3) or a Beit (relative positions).
        pool: "token": the class token after the norm; "mean": the mean of the patches after the
            norm; "mean_before_norm": the mean of the unnormalized patches, then a new norm,
            `fc_norm` (MAE's fine-tuning); "net": the net's own pooling and norms, for example
            SigLIP's attention pooling.
        positions: "learned", or fixed sine-cosine embeddings in the channel order of "mae" or
            "moco_v3".
        init: initialization of that method's code: "dino" normal 0.02; "dinov2" likewise, and class
            and register tokens 1e-6; "moco_v3" Xavier, separately for q, k and v; "mae" Xavier;
            "ijepa" normal 0.02, also for the patch projection; "beit" normal 0.02
            cut at one deviation, also for the patch projection and tokens, with smaller outputs of
            deeper blocks: pre-training of BEiT, SimMIM and data2vec; "msn" normal 0.02, the patch
            projection Kaiming; "clip": torch's own, with q, k and v Xavier in one, and tokens and
            positions normal width^-0.5. None: the values that `net` has.
        mask_token: whether to learn a mask token for `forward_tokens(mask=)` (iBOT).
        freeze_patches: whether the patch projection keeps its random initialization (MoCo v3).
        stem: "linear": one projection per patch; "conv": convolutions of stride 2 with batch norm
            (Xiao et al., Early Convolutions Help Transformers See Better, NeurIPS 2021,
            https://arxiv.org/abs/2106.14881), as in MoCo v3's vit_conv_small with 11 blocks.
        resample: how learned positions are resampled for images of other sizes, see
            `resample_positions`; None: "antialias" with registers or rotary positions, else "dino".
        class_position: whether a class token beside registers has a position of its own, as in
            DINOv2's training; in released weights it is part of the class token.
        subset_rate: rate of DINOv2's stochastic depth (`add_to_subset`), the same in every block.

    Attributes:
        num_features: D.
        map_features: D.
        grid: patches per side of the images that `net` was built for, or (h, w) if they are not
            square.
        patch_size: side of a patch in pixels.
        num_prefix: R; 1 with a class token alone, 0 without.

    Raises:
        ValueError: `net` has parts that this class does not use, or an option is unknown.
    """

    def __init__(
        self,
        net: nn.Module,
        pool: Pool = "token",
        positions: Positions = "learned",
        init: Init | None = "dino",
        mask_token: bool = False,
        freeze_patches: bool = False,
        stem: Stem = "linear",
        resample: Resample | None = None,
        class_position: bool = False,
        subset_rate: float = 0.0,
    ):
        super().__init__()
        _check_net(net)
        _check_options(net, pool, positions, init)
        check_interval("subset_rate", subset_rate, 0, 1, "[)")
        if subset_rate and not isinstance(net, VisionTransformer):
            raise ValueError(
                "subset_rate must be 0 for nets other than a VisionTransformer, got "
                f"{subset_rate} for a {type(net).__name__}"
            )
        check_choice("stem", stem, get_args(Stem))
        check_choice("resample", resample, (None, *get_args(Resample)))
        if stem == "conv" and freeze_patches:
            raise ValueError("freeze_patches must be False with stem='conv', got True")
        parts: Any = net
        self.num_features: int = parts.embed_dim
        self.map_features = self.num_features
        self._grid: tuple[int, int] = tuple(parts.patch_embed.grid_size)
        self.grid: Sides = as_side(self._grid)
        self.patch_size: int = parts.patch_embed.patch_size[0]
        self.num_prefix: int = parts.num_prefix_tokens
        self.patch_embed, self.blocks = parts.patch_embed, parts.blocks
        if subset_rate:
            drop_subsets(self.blocks, subset_rate)
        if stem == "conv":
            self.patch_embed.proj = conv_stem(self.patch_embed.proj)
        self.norm_pre: nn.Module = getattr(parts, "norm_pre", nn.Identity())
        self._take_pooling(parts, pool)
        self.cls_token, self.pos_embed = parts.cls_token, parts.pos_embed
        # Before the patches, DeiT has a distillation token where others have registers.
        extra = getattr(parts, "dist_token", None)
        self._extra = "reg_token" if extra is None else "dist_token"
        setattr(self, self._extra, getattr(parts, self._extra, None))
        self.rope: Any = getattr(parts, "rope", None)
        self._rope_per_block: bool = getattr(parts, "rope_mixed", False)
        self.rel_pos_bias: Any = getattr(parts, "rel_pos_bias", None)
        self._fixed_size = isinstance(net, Beit)
        if class_position:
            self._add_class_position()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.num_features)) if mask_token else None
        if resample is None:
            registers = self._extra == "reg_token" and self.reg_token is not None
            resample = "antialias" if registers or self.rope is not None else "dino"
        self.resample: Resample = resample
        if init is not None:
            initialize_vit(self, init)
        if positions != "learned":
            self._fix_positions(positions)
        if freeze_patches:
            self.patch_embed.requires_grad_(False)

    def _add_class_position(self) -> None:
        patches = self._grid[0] * self._grid[1]
        if self.cls_token is None or self.pos_embed is None or self.pos_embed.shape[1] != patches:
            raise ValueError(
                "class_position must be False for a net without class token, without positions, "
                "or in which the class token has one, got True"
            )
        self.pos_embed = nn.Parameter(F.pad(self.pos_embed.data, (0, 0, 1, 0)))

    def _fix_positions(self, positions: Positions) -> None:
        """Replace the positions by sine-cosine embeddings; those of the prefix are zero."""
        first: Literal["column", "row"] = "column" if positions == "mae" else "row"
        table = sincos_positions(*self._grid, self.num_features, first)
        table = F.pad(table, (0, 0, self.pos_embed.shape[1] - len(table), 0))
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)

    def _take_pooling(self, net: Any, pool: Pool) -> None:
        """Take the net's norms, and its attention pooling if it is used."""
        self.norm: nn.Module = net.norm
        self.fc_norm: nn.Module = nn.Identity()
        self.attn_pool: nn.Module | None = None
        self._own_pool, self._pool_prefix = "", False
        if pool == "net":
            self.fc_norm = net.fc_norm
            self.attn_pool = getattr(net, "attn_pool", None)
            self._pool_prefix = getattr(net, "pool_include_prefix", self.attn_pool is not None)
            self._own_pool = net.global_pool or ("token" if net.cls_token is not None else "avg")
            if isinstance(net, VisionTransformerDistilled):
                self._own_pool = "distilled"
            elif self._own_pool == "token" and isinstance(self.fc_norm, nn.Identity):
                pool = "token"
        elif pool == "mean_before_norm":
            self.norm, self.fc_norm = nn.Identity(), nn.LayerNorm(self.num_features, eps=1e-6)
        elif not isinstance(net.fc_norm, nn.Identity):  # the net's norm follows its pooling
            self.norm = net.fc_norm
        self.pool: Pool = pool

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
            (B, R + L, D), or (B, R + K, D) with `keep`; R is `num_prefix`.

        Raises:
            ValueError: the images do not fit, there is no mask token, or the net cannot drop
                patches (relative positions).
        """
        return self.norm(self._blocks(x, mask, keep)[0])

    def forward_blocks(self, x: Tensor, count: int, norm: bool = True) -> list[Tensor]:
        """All tokens after each of the last blocks and the norm, for DINO's linear evaluation.

        Args:
            x: (B, C, H, W).
            count: number of last blocks.
            norm: whether the final norm follows; data2vec's targets are without it.

        Returns:
            Per block, in order: (B, R + L, D).

        Raises:
            ValueError: there are fewer blocks.
        """
        check_interval("count", count, 1, len(self.blocks))
        blocks = self._blocks(x, count=count)
        return [self.norm(tokens) for tokens in blocks] if norm else blocks

    def forward_map(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The patch tokens as a feature map.

        Args:
            x: (B, C, H, W).
            mask: (B, L) bool; see `forward_tokens` (SimMIM).

        Returns:
            (B, D, h, w).
        """
        tokens = self.forward_tokens(x, mask)[:, self.num_prefix :]
        return tokens.unflatten(1, self._sides(x)).permute(0, 3, 1, 2)

    def _sides(self, x: Tensor) -> tuple[int, int]:
        """The grid of patches of images (B, C, H, W)."""
        height, width = x.shape[2:]
        return height // self.patch_size, width // self.patch_size

    def _blocks(
        self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, count: int = 1
    ) -> list[Tensor]:
        """The tokens after each of the last `count` blocks; see `forward_tokens`."""
        tokens = self.norm_pre(self._embed(x, mask, keep))
        shared = None if self.rel_pos_bias is None else self.rel_pos_bias()
        rope = None if self.rope is None else self._rotations(x, keep)
        outputs: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            if rope is not None:
                tokens = block(tokens, rope=rope[number] if self._rope_per_block else rope)
            elif shared is not None:
                tokens = block(tokens, shared_rel_pos_bias=shared)
            else:
                tokens = block(tokens)
            if number >= len(self.blocks) - count:
                outputs.append(tokens)
        return outputs

    def _rotations(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """Rotary embeddings of the patches, (L, 2 d) or, with `keep`, (B, 1, K, 2 d)."""
        rope = self.rope.get_embed(shape=list(self._sides(x)))
        if keep is None:
            return rope
        if self._rope_per_block:  # (blocks, heads, L, d) -> (blocks, B, heads, K, d)
            return rope[:, :, keep].transpose(1, 2)
        return rope[keep].unsqueeze(1)

    def _embed(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """The tokens with their positions; see `forward_tokens`."""
        self._check_images(x)
        patches = self.patch_embed(x)  # (B, h, w, D), or (B, L, D) for a fixed size
        height, width = self._sides(x)
        patches = patches if self._fixed_size else patches.flatten(1, 2)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("mask_token of the ViT must be True to use mask, got False")
            patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        before = (self.cls_token, getattr(self, self._extra))
        first = [token for token in before if token is not None]
        tokens, prefix = patches, torch.cat(first, dim=1) if first else None
        if self.pos_embed is not None:
            count = self.pos_embed.shape[1] - self._grid[0] * self._grid[1]
            of_prefix, positions = self.pos_embed.tensor_split([count], dim=1)
            if (height, width) != self._grid:
                positions = resample_positions(positions, height, width, self._grid, self.resample)
            tokens = patches + positions
            if count and prefix is not None:
                prefix = prefix + F.pad(of_prefix, (0, 0, 0, prefix.shape[1] - count))
        if keep is not None:
            if self._fixed_size:
                raise ValueError(
                    "keep must be None for a BEiT, whose relative positions need all patches, got "
                    f"{tuple(keep.shape)}"
                )
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))
        if prefix is not None:
            # x.shape[0], since len(x) would make B a constant in torch.export
            tokens = torch.cat([prefix.expand(x.shape[0], -1, -1), tokens], dim=1)
        return tokens

    def _check_images(self, x: Tensor) -> None:
        """Refuse images whose sides the net cannot take."""
        height, width = x.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"height and width of the images must be multiples of the patch, "
                f"{self.patch_size} pixels, got {height} x {width}"
            )
        if self._fixed_size and self._sides(x) != self._grid:
            size = tuple(side * self.patch_size for side in self._grid)
            raise ValueError(
                f"images must have {size[0]} x {size[1]} pixels for a BEiT, whose relative "
                f"positions have a fixed grid, got {height} x {width}; pass img_size"
            )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.forward_tokens(x)
        if self.pool == "token":
            return tokens[:, 0]
        if self.pool == "net":
            return self._pooled(tokens)
        return self.fc_norm(tokens[:, self.num_prefix :].mean(dim=1))

    def _pooled(self, tokens: Tensor) -> Tensor:
        """The net's own pooling."""
        if self.attn_pool is not None:
            pooled = self.attn_pool(tokens if self._pool_prefix else tokens[:, self.num_prefix :])
        elif self._own_pool == "distilled":
            pooled = tokens[:, :2].mean(dim=1)
        else:
            pooled = global_pool_nlc(tokens, self._own_pool, self.num_prefix, self._pool_prefix)
        return self.fc_norm(pooled)

    def taken_from(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a pre-trained state dict to load before fine-tuning.

        It is the whole state dict, except that with "mean_before_norm" the pre-trained norm is
        dropped, and `fc_norm` keeps its initial state unless it was saved; that a mask token is
        dropped by a net without it; and that a table of relative positions that all blocks shared
        is the first of each block's own, as in SimMIM's fine-tuning.

        Args:
            saved: a state dict.
        """
        saved = dict(saved)
        if self.mask_token is None:
            saved.pop("mask_token", None)
        tables = [name for name in self.state_dict() if name.endswith("attn." + _TABLE)]
        if tables and f"rel_pos_bias.{_TABLE}" in saved and self.rel_pos_bias is None:
            shared = saved.pop(f"rel_pos_bias.{_TABLE}")
            saved |= {name: saved.get(name, shared) for name in tables}
        if self.pool != "mean_before_norm" or any(name.startswith("fc_norm.") for name in saved):
            return saved
        taken = {name: x for name, x in saved.items() if not name.startswith("norm.")}
        new = self.fc_norm.state_dict(prefix="fc_norm.")
        return {**taken, **new}


def _check_net(net: nn.Module) -> None:
    """Refuse a net of another class, or with parts that `ViT` does not use."""
    if type(net) not in NETS:
        raise ValueError(
            "net must be a timm VisionTransformer, VisionTransformerDistilled, Eva or Beit, got a "
            f"{type(net).__name__}"
        )
    parts: Any = net
    odd = ["pos_drop"] if parts.pos_drop.p else []
    if not isinstance(getattr(parts, "patch_drop", None), nn.Identity | None):
        odd.insert(0, "patch_drop")
    if odd:
        raise ValueError(f"net must be without dropped patches and positions, got {odd}")
    embed = parts.patch_embed
    if not isinstance(net, Beit) and embed.output_fmt != "NHWC":
        raise ValueError("dynamic_img_size of the VisionTransformer must be True, got False")
    sides, patch = tuple(embed.img_size), tuple(embed.patch_size)
    if patch[0] != patch[1] or any(side % patch[0] for side in sides):
        raise ValueError(
            f"img_size must be a multiple of a square patch, got {as_side(sides)} with patches of "
            f"{patch[0]} x {patch[1]} pixels"
        )


def _check_options(net: Any, pool: str, positions: str, init: str | None) -> None:
    check_choice("pool", pool, get_args(Pool))
    if pool == "token" and net.cls_token is None:
        raise ValueError("pool must be a mean without a class token, got 'token'")
    check_choice("positions", positions, get_args(Positions))
    if positions != "learned" and net.pos_embed is None:
        raise ValueError(
            f"positions must be 'learned' for a net without position embeddings, got {positions!r}"
        )
    if init is not None:
        check_choice("init", init, get_args(Init))
