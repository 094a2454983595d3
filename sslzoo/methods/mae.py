"""MAE: masked autoencoders are scalable vision learners.

He, Chen, Xie, Li, Dollar and Girshick, CVPR 2022, https://arxiv.org/abs/2111.06377.
Reference code: facebookresearch/mae at efb2a80.

Deviations:
    1. Masks are keyed by (seed, step, sample); the code draws torch.rand on each rank.
    2. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sslzoo.backbones import ViT, check_pooling
from sslzoo.batch import Batch, ViewSpec
from sslzoo.checks import check_sides
from sslzoo.heads import MAEDecoder
from sslzoo.losses import masked_pixels
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, step_keys
from sslzoo.optim import Schedule, exempt_bias_and_norm


class MAE(SSLMethod):
    """Encode a quarter of the patches, and reconstruct the masked ones with a light decoder.

    Args:
        backbone: a ViT with a class token (`timm_vit`, `small_vit`), also with registers; in the
            paper with `positions="mae"` and `init="mae"`.
        decoder: of width 512 with 8 blocks in the paper.
        mask_ratio: fraction of the patches that is masked; 0.75 in the paper.
        normalize_pixels: whether the targets are normalized patch by patch; True is the paper's
            best.
        optimizer: see `SSLMethod`; AdamW with betas 0.9 and 0.95 in the paper.
        schedule: see `SSLMethod`; 40 epochs of warm-up, then a cosine in the paper.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in the paper.

    Example:
        >>> import torch
        >>> from sslzoo.backbones import small_vit
        >>> vit = small_vit(8, 2, width=16, depth=1, num_heads=2, positions="mae", init="mae")
        >>> method = MAE(vit, MAEDecoder(16, grid=4, patch_size=2, width=8, depth=1, num_heads=2))
        >>> batch = Batch([torch.rand(4, 3, 8, 8)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['masked_pixels']
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: MAEDecoder,
        mask_ratio: float = 0.75,
        normalize_pixels: bool = True,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        if not isinstance(backbone, ViT) or backbone.cls_token is None:
            raise ValueError(
                "backbone must be a ViT with a class token (timm_vit, small_vit), got "
                f"{type(backbone).__name__}"
            )
        check_pooling(backbone)
        theirs = (decoder.token_dim, decoder.grid, decoder.patch_size)
        ours = (backbone.num_features, backbone.grid, backbone.patch_size)
        if theirs != ours:
            raise ValueError(
                f"decoder must have the backbone's width, grid and patch size {ours}, got {theirs}"
            )
        rows, columns = check_sides("grid", backbone.grid)
        self.num_patches = rows * columns
        self.num_kept = int(self.num_patches * (1 - mask_ratio))
        if not 0 < self.num_kept < self.num_patches:
            raise ValueError(
                f"mask_ratio must keep at least 1 and not all of the {self.num_patches} patches, "
                f"got {mask_ratio}, which keeps {self.num_kept}"
            )
        self.decoder = decoder
        size = rows * backbone.patch_size, columns * backbone.patch_size
        self.takes = ViewSpec(1, 1, kind="images", size=size)
        self.normalize_pixels = normalize_pixels

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        (view,) = batch.views
        order = step_keys(self, batch).permutation("mask", self.num_patches)  # (B, L)
        masked = order[:, self.num_kept :]
        pixels, patch = self.reconstruct(view, order), self.decoder.patch_size
        return {"masked_pixels": masked_pixels(pixels, view, masked, patch, self.normalize_pixels)}

    def reconstruct(self, view: Tensor, order: Tensor) -> Tensor:
        """Pixels of all patches, from the first `num_kept` patches in each image's order.

        Shapes: (B, C, H, W) and (B, L) int64 -> (B, L, P * P * C).
        """
        vit = cast(ViT, self.backbone)
        tokens = vit.forward_tokens(view, keep=order[:, : self.num_kept])
        if vit.num_prefix > 1:  # the decoder takes no registers
            tokens = torch.cat([tokens[:, :1], tokens[:, vit.num_prefix :]], dim=1)
        return self.decoder(tokens, order.argsort(dim=1))
