"""SimMIM: a simple framework for masked image modeling.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai and Hu, CVPR 2022, https://arxiv.org/abs/2111.09886.
Reference code: microsoft/SimMIM at d3e29bc; with normalized targets microsoft/Swin-Transformer at
f82860b.

Deviations:
    1. Masks are keyed by (seed, step, sample); the code draws numpy's permutations in the workers.
    2. The rate of step t is the schedule's at t; the code calls its scheduler after the optimizer
       step, so that its rates are one step late (its first two are that of step 0).
    3. Half precision is bfloat16 in our recipes; the code has apex's O1 (float16, a loss scaler).
    4. The features of a ViT are the mean of its normalized patches; the code has none of the
       pre-trained net, and its fine-tuning drops the norm and learns one after the mean
       (`pool: mean_before_norm`).
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from sslzoo.backbones import Swin, ViT, check_pooling
from sslzoo.batch import Batch, ViewSpec
from sslzoo.checks import check_sides
from sslzoo.losses import masked_l1, window_normalize
from sslzoo.masks import UnitMasks
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, step_keys
from sslzoo.optim import Schedule, exempt_bias_and_norm


class SimMIM(SSLMethod):
    """Replace square units of an image by a mask token, and predict their pixels linearly.

    The prediction is one 1x1 convolution of the encoder's map to the pixels that a position covers.

    Args:
        backbone: a ViT (`timm_vit` with a name of BEiT, `small_vit`) or a Swin (`timm_swin`), with
            `mask_token`; the paper's ViT has one relative position bias for all blocks and no
            positions.
        mask_unit: side in pixels of the squares that are masked; 32 in the paper.
        mask_ratio: fraction of the squares that is masked, rounded up; 0.6 in the paper.
        target_window: side in pixels of the window by which every target pixel is normalized, 47
            for SwinV2; None: the pixels themselves, as in the paper.
        optimizer: see `SSLMethod`; AdamW in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine or one step in the paper.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in the paper, nor the
            class token of a ViT or the mask token of a Swin (`ExemptNamed`).

    Example:
        >>> import torch
        >>> from sslzoo.backbones import small_vit
        >>> vit = small_vit(8, 2, width=16, depth=1, num_heads=2, mask_token=True, pool="mean")
        >>> method = SimMIM(vit, mask_unit=4, mask_ratio=0.5)
        >>> batch = Batch([torch.rand(4, 3, 8, 8)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['masked_l1']
    """

    def __init__(
        self,
        backbone: nn.Module,
        mask_unit: int = 32,
        mask_ratio: float = 0.6,
        target_window: int | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        if not isinstance(backbone, Swin | ViT) or backbone.mask_token is None:
            raise ValueError(
                "backbone must be a ViT or a Swin with mask_token=True (timm_vit, small_vit, "
                f"timm_swin), got {type(backbone).__name__}"
            )
        check_pooling(backbone)
        if getattr(backbone, "pool", None) == "token":
            raise ValueError(
                "backbone must pool its map, since the class token is not trained to hold the "
                "image, got pool 'token'; set pool: mean"
            )
        self.masks = UnitMasks(mask_unit, mask_ratio)
        rows, columns = check_sides("grid", backbone.grid)
        self.size = rows * backbone.patch_size, columns * backbone.patch_size
        self.masks.grid(self.size, backbone.patch_size)
        if target_window is not None:
            window_normalize(cast(Any, backbone.mask_token)[None], target_window)
        self.target_window = target_window
        self.takes = ViewSpec(1, 1, kind="images", size=self.size)
        channels = cast(Any, backbone.patch_embed).proj.in_channels
        stride = backbone.map_stride if isinstance(backbone, Swin) else backbone.patch_size
        self.decoder = nn.Sequential(
            nn.Conv2d(backbone.map_features, stride**2 * channels, 1), nn.PixelShuffle(stride)
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        (view,) = batch.views
        mask = self.masks(step_keys(self, batch), self.size, cast(Any, self.backbone).patch_size)
        pixels = self.reconstruct(view, mask)
        return {"masked_l1": masked_l1(pixels, view, mask, self.target_window)}

    def reconstruct(self, view: Tensor, mask: Tensor) -> Tensor:
        """Predict all pixels. Shapes: (B, C, H, W) and (B, h, w) bool -> (B, C, H, W)."""
        return self.decoder(cast(Any, self.backbone).forward_map(view, mask=mask.flatten(1)))
