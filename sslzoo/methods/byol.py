"""BYOL: bootstrap your own latent.

Grill, Strub, Altche, Tallec, Richemond et al., NeurIPS 2020, https://arxiv.org/abs/2006.07733.
Reference code: deepmind/deepmind-research, byol, commit d8df415.

Deviations:
    1. The target network starts as a copy of the online network; the code initializes it from a
       different key and notes that this makes no difference.
    2. The target network has no predictor; the code's has one, whose output the loss does not use.
    3. The linear classifier whose cross entropy is part of the code's loss is `OnlineProbe` here,
       with its own optimizer.
    4. Running statistics of batch norm are torch's (unbiased variance, momentum 0.1); Haiku's are
       zero-debiased averages of the biased variance. Both train with batch statistics.
    5. A run has `n // batch_size * epochs` steps; the code's has `n * epochs // batch_size`. The
       warm-up is computed in the same two ways.
    6. timm's strided convolutions and max-pool pad symmetrically; Haiku's SAME padding is
       asymmetric for even inputs.
    7. Crops are antialiased; TensorFlow's are not.
    8. Our recipes train in bfloat16 mixed precision, the published code in float32.

Without batch statistics: Richemond et al., "BYOL works even without batch statistics", 2020,
https://arxiv.org/abs/2010.10241, is a config of this class (`norm: group` in backbone and heads).
"""

from __future__ import annotations

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.losses import regression
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, frozen_copy, output_dim
from sslzoo.optim import CosineSchedule, Schedule, as_schedule, exempt_bias_and_norm


class BYOL(SSLMethod):
    """Predict the target network's projection of one view from the other view.

    Args:
        backbone: f; (B, C, H, W) -> (B, num_features).
        projector: g; num_features -> 256 in the paper (`heads.byol_mlp`).
        predictor: q; 256 -> 256 in the paper (`heads.byol_mlp`).
        momentum: tau of the target network at each optimizer step; None: CosineSchedule(0.996,
            1.0), the paper's for 1000 epochs.
        optimizer: see `SSLMethod`; LARS in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine in the paper.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in the paper.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import byol_mlp
        >>> method = BYOL(SmallResNet((8, 16)), byol_mlp(16, 32, 8), byol_mlp(8, 32, 8))
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['regression']
    """

    takes = ViewSpec(2, 2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        momentum: Schedule | float | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector, predictor)
        self.projector, self.predictor = projector, predictor
        self.teacher_backbone = frozen_copy(backbone)
        self.teacher_projector = frozen_copy(projector)
        self.momentum = CosineSchedule(0.996, 1.0) if momentum is None else as_schedule(momentum)

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.backbone, self.teacher_backbone), (self.projector, self.teacher_projector)]

    def configure_callbacks(self) -> list[Callback]:
        return [EMA(self.momentum, when="after_step")]

    @torch.no_grad()
    def target(self, view: View) -> Tensor:
        """The target network's projection. (B, C, H, W) -> (B, D)."""
        return self.teacher_projector(self.teacher_backbone(view))

    def embed(self, view: View) -> Tensor:
        """The online network's projection. (B, C, H, W) -> (B, D)."""
        return self.projector(self.backbone(view))

    def online(self, view: View) -> Tensor:
        """The online network's prediction. (B, C, H, W) -> (B, D)."""
        return self.predictor(self.embed(view))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        v1, v2 = batch.views
        p1, p2 = self.online(v1), self.online(v2)
        z1, z2 = self.target(v1), self.target(v2)
        return {"regression": regression(p1, z2) + regression(p2, z1)}
