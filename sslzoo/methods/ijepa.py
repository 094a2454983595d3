"""I-JEPA: self-supervised learning from images with a joint-embedding predictive architecture.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun and Ballas, CVPR 2023,
https://arxiv.org/abs/2301.08243. Reference code: facebookresearch/ijepa at 52c1ae9.

Deviations:
    1. Sizes of blocks are keyed by (seed, step), their places by (seed, step, sample); the code
       draws places from torch's generator in each worker.
    2. The number of context patches is what every image has however its blocks lie, the context
       block less all targets, at least min_keep + 1; the code cuts to the smallest of each rank's
       batch (at 16 x 16 patches and 128 images 70 on average, ours 51). Both keep the first.
    3. Where fewer than min_keep + 1 patches would be left, ours gives patches of the last target
       back to the context; the code draws its block anew up to 20 times before it does the same.
    4. Rates and weight decay count steps from 0, the code from 1.
"""

from __future__ import annotations

from typing import cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import ViT
from sslzoo.batch import Batch
from sslzoo.callbacks.ema import EMA
from sslzoo.heads import IJEPAPredictor
from sslzoo.losses import masked_features
from sslzoo.masks import MultiBlock
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    frozen_copy,
    step_keys,
)
from sslzoo.optim import LinearSchedule, Schedule, as_schedule, exempt_bias_and_norm


class IJEPA(SSLMethod):
    """From a context block, predict the teacher's features of the blocks cut out of it.

    `forward` is the teacher's, as in the paper: the mean of its patches.

    Args:
        backbone: a ViT without class token and with `pool="mean"`, in the paper with
            `positions="mae"` and `init="ijepa"`.
        predictor: 384 wide, 12 blocks for ViT-H, in the paper.
        masks: sizes and number of the blocks; None: MultiBlock(), the paper's.
        momentum: of the teacher by optimizer step; None: LinearSchedule(0.996, 1.0), the
            paper's line over the run.
        optimizer: see `SSLMethod`; AdamW in the paper, its decay raised from 0.04 to 0.4 by
            `WeightDecaySchedule`.
        schedule: see `SSLMethod`; 40 epochs of warm-up, then a cosine.
        parameter_groups: see `SSLMethod`; biases and norms are exempt in the paper.

    Example:
        >>> from sslzoo.backbones import small_vit
        >>> options = {"class_token": False, "pool": "mean", "positions": "mae", "init": "ijepa"}
        >>> vit = small_vit(8, 2, width=16, depth=1, num_heads=2, **options)
        >>> predictor = IJEPAPredictor(16, grid=4, width=8, depth=1, num_heads=2)
        >>> method = IJEPA(vit, predictor, MultiBlock(num_targets=2, min_keep=2))
        >>> batch = Batch([torch.rand(4, 3, 8, 8)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['masked_features']
    """

    def __init__(
        self,
        backbone: nn.Module,
        predictor: IJEPAPredictor,
        masks: MultiBlock | None = None,
        momentum: Schedule | float | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        if not isinstance(backbone, ViT) or backbone.num_prefix:
            raise ValueError(
                "I-JEPA wants a ViT without class token (timm_vit or small_vit with "
                f"class_token=False, pool='mean'), got {type(backbone).__name__}"
            )
        ours, theirs = (backbone.num_features, backbone.grid), (predictor.token_dim, predictor.grid)
        if theirs != ours:
            raise ValueError(f"the backbone has width and grid {ours}, the predictor {theirs}")
        self.predictor, self.masks = predictor, masks or MultiBlock()
        self.momentum = LinearSchedule(0.996, 1.0) if momentum is None else as_schedule(momentum)
        self.teacher_backbone = frozen_copy(backbone)

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.backbone, self.teacher_backbone)]

    def configure_callbacks(self) -> list[Callback]:
        return [EMA(self.momentum, when="after_step")]

    def encoder(self) -> nn.Module:
        return self.teacher_backbone

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        (view,) = batch.views
        keys, grid = step_keys(self, batch), self.predictor.grid
        context, targets = self.masks.draw(keys, grid, self.seed, self.step)
        z, h = self.predict(view, context, targets), self.target(view, targets)
        return {"masked_features": masked_features(z, h)}

    def predict(self, view: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Features of the targets, from the context alone. (B, M, R, D)."""
        tokens = cast(ViT, self.backbone).forward_tokens(view, keep=context)
        return self.predictor(tokens, context, targets)

    @torch.no_grad()
    def target(self, view: Tensor, targets: Tensor) -> Tensor:
        """The teacher's features of the targets, from the whole image. (B, M, R, D)."""
        tokens = self.teacher_backbone.forward_tokens(view)
        index = targets.flatten(1)[..., None].expand(-1, -1, tokens.shape[2])
        return tokens.gather(1, index).unflatten(1, targets.shape[1:])
