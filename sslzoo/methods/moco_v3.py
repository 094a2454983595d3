"""MoCo v3: an empirical study of training self-supervised vision transformers.

Chen, Xie and He, ICCV 2021, https://arxiv.org/abs/2104.02057.
Reference code: facebookresearch/moco-v3 at c349e6e.

Deviations:
    1. With gradient accumulation the negatives are the keys of the same micro-batch; the code has
       no accumulation.
    2. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code.
    3. Fixed positions of a grid that is not square are in the order of the patches, row by row; the
       code lists them column by column.
"""

from __future__ import annotations

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import batch_info_nce
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    frozen_copy,
    predictor_dim,
)
from sslzoo.optim import CosineSchedule, Schedule, all_alike, as_schedule


class MoCoV3(SSLMethod):
    """Contrast predictions with the momentum encoder's keys of the global batch.

    Args:
        backbone: f; (B, C, H, W) -> (B, num_features).
        projector: num_features -> D = 256 in the paper, of width 4096 without biases, with two
            layers for ResNet-50 and three for ViT, and a batch norm without scale and offset at
            the end.
        predictor: D -> D, in the paper two layers of width 4096 without biases, with a batch norm
            without scale and offset at the end for ViT only.
        temperature: tau; 1.0 for ResNet-50, 0.2 for ViT in the code.
        momentum: m of the momentum encoder at each optimizer step; None: CosineSchedule(0.99, 1.0),
            the code's; it starts at 0.996 for 1000 epochs of ResNet-50.
        optimizer: see `SSLMethod`; LARS for ResNet-50, AdamW for ViT.
        schedule: see `SSLMethod`; 10 epochs of warm-up (ViT: 40), then a cosine.
        parameter_groups: see `SSLMethod`; all parameters are decayed for ViT, all but biases and
            norms for ResNet-50.

    Example:
        >>> from sslzoo.backbones import small_vit
        >>> from sslzoo.heads import MLP
        >>> vit = small_vit(8, 4, width=16, depth=2, num_heads=2, freeze_patches=True)
        >>> plain = {"bias": False, "last_bias": False, "last_norm": "plain"}
        >>> method = MoCoV3(vit, MLP([16, 32, 32, 8], **plain), MLP([8, 32, 8], **plain))
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['info_nce']
    """

    takes = ViewSpec(2, 2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        temperature: float = 1.0,
        momentum: Schedule | float | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        predictor_dim(backbone, projector, predictor)
        self.projector, self.predictor = projector, predictor
        self.key_backbone, self.key_projector = frozen_copy(backbone), frozen_copy(projector)
        self.temperature = temperature
        self.momentum = CosineSchedule(0.99, 1.0) if momentum is None else as_schedule(momentum)

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.backbone, self.key_backbone), (self.projector, self.key_projector)]

    def configure_callbacks(self) -> list[Callback]:
        return [EMA(self.momentum, when="before_forward")]

    def query(self, view: Tensor) -> Tensor:
        """The encoder's L2-normalized prediction. (B, C, H, W) -> (B, D)."""
        return l2_normalize(self.predictor(self.projector(self.backbone(view))))

    @torch.no_grad()
    def key(self, view: Tensor) -> Tensor:
        """The momentum encoder's L2-normalized projection. (B, C, H, W) -> (B, D)."""
        return l2_normalize(self.key_projector(self.key_backbone(view)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        v1, v2 = batch.views
        q1, q2 = self.query(v1), self.query(v2)
        k1, k2 = self.key(v1), self.key(v2)
        tau = self.temperature
        loss = batch_info_nce(q1, k2, tau) + batch_info_nce(q2, k1, tau)
        return {"info_nce": 2 * tau * loss}  # the learning rates are tuned with this factor
