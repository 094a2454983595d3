"""I-JEPA: self-supervised learning from images with a joint-embedding predictive architecture.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun and Ballas, CVPR 2023,
https://arxiv.org/abs/2301.08243. Reference code: facebookresearch/ijepa at 52c1ae9.

Deviations:
    1. Sizes of blocks are keyed by (seed, step), their positions by (seed, step, sample); the code
       draws positions from torch's generator in each worker.
    2. The number of context patches is the size of the context block minus that of all targets, and
       at least min_keep + 1; the code truncates to the smallest context of each rank's batch. With
       16 x 16 patches these are on average 48 (ours) and 70 or 56 (the code's, with 128 or 2048
       images). Both keep the first patches.
    3. If fewer than min_keep + 1 context patches would remain, patches of the last target return to
       the context; the code redraws the target block up to 20 times before it does so.
    4. Learning rates and weight decay count steps from 0, in the code from 1.
"""

from __future__ import annotations

from typing import cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import ViT, check_pooling
from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.checks import check_sides
from sslzoo.heads import IJEPAPredictor
from sslzoo.losses import masked_features
from sslzoo.masks import MultiBlock
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, frozen_copy, step_keys
from sslzoo.optim import LinearSchedule, Schedule, as_schedule, exempt_bias_and_norm


class IJEPA(SSLMethod):
    """Predict the teacher's features of target blocks from a context block.

    `forward` is the teacher's mean over patches, as in the paper. With several context blocks
    (`MultiBlock.num_contexts`), each predicts all targets by itself.

    Args:
        backbone: a ViT without class token and with `pool="mean"`, in the paper with
            `positions="mae"` and `init="ijepa"`.
        predictor: of width 384, with 12 blocks for ViT-H in the paper.
        masks: draws the context and target blocks; None: MultiBlock(), the paper's.
        momentum: momentum of the teacher at each optimizer step; None: LinearSchedule(0.996, 1.0),
            the paper's.
        optimizer: see `SSLMethod`; AdamW in the paper, whose weight decay `WeightDecaySchedule`
            raises from 0.04 to 0.4.
        schedule: see `SSLMethod`; 40 epochs of warm-up, then a cosine in the paper.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in the paper.

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
                "backbone must be a ViT without class token (timm_vit or small_vit with "
                f"class_token=False, pool='mean'), got {type(backbone).__name__}"
            )
        check_pooling(backbone)
        ours, theirs = (backbone.num_features, backbone.grid), (predictor.token_dim, predictor.grid)
        if theirs != ours:
            raise ValueError(
                f"predictor must have the backbone's width and grid {ours}, got {theirs}"
            )
        self.predictor, self.masks = predictor, masks or MultiBlock()
        self.momentum = LinearSchedule(0.996, 1.0) if momentum is None else as_schedule(momentum)
        self.teacher_backbone = frozen_copy(backbone)
        rows, columns = check_sides("grid", backbone.grid)
        if min(rows, columns) < 2:
            raise ValueError(
                "the grid of the backbone must have at least 2 rows and 2 columns, since a block "
                f"is smaller, got {(rows, columns)}"
            )
        size = rows * backbone.patch_size, columns * backbone.patch_size
        self.takes = ViewSpec(1, 1, kind="images", size=size)

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
        h = h if context.dim() == 2 else h[:, None].expand_as(z)
        return {"masked_features": masked_features(z, h)}

    def predict(self, view: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Predicted features of the targets, from the context alone.

        Shapes: context (B, K), targets (B, M, R) -> (B, M, R, D); with E contexts (B, E, K), each
        by itself, (B, E, M, R, D).
        """
        if context.dim() == 3:
            E = context.shape[1]
            view, targets = (x.repeat_interleave(E, 0) for x in (view, targets))
            return self.predict(view, context.flatten(0, 1), targets).unflatten(0, (-1, E))
        tokens = cast(ViT, self.backbone).forward_tokens(view, keep=context)
        return self.predictor(tokens, context, targets)

    @torch.no_grad()
    def target(self, view: Tensor, targets: Tensor) -> Tensor:
        """The teacher's features of the targets, from the entire image. (B, M, R, D)."""
        tokens = self.teacher_backbone.forward_tokens(view)
        index = targets.flatten(1)[..., None].expand(-1, -1, tokens.shape[2])
        return tokens.gather(1, index).unflatten(1, targets.shape[1:])
