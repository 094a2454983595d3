"""DINO: self-distillation with no labels.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski and Joulin, Emerging Properties in
Self-Supervised Vision Transformers, ICCV 2021, https://arxiv.org/abs/2104.14294.
Reference code: facebookresearch/dino at 7c446df.

Deviations:
    1. The center is updated after the optimizer step, with all micro-batches of a gradient
       accumulation and batches of any size per rank; the code updates it at the end of the loss,
       has no accumulation and needs equal batches on all GPUs.
    2. Logits of the prototypes are computed in float32; the code's are float16 under autocast.
    3. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import multi_crop
from sslzoo.backbones.drop_path import without_drop_path
from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.freeze import FreezeHead
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.heads import DINOHead
from sslzoo.losses import dino, teacher_probabilities
from sslzoo.memory import Center
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, frozen_copy, output_dim
from sslzoo.optim import CosineSchedule, Schedule, as_schedule, exempt_bias_and_norm


class DINO(SSLMethod):
    """Every crop predicts the momentum teacher's probabilities for the other large crops.

    Args:
        backbone: (B, C, S, S) -> (B, num_features), for every size S of the views.
        projector: num_features -> K, the paper's head; the loss computes its last layer.
        student_temperature: tau_s; 0.1 in the paper.
        teacher_temperature: tau_t at each optimizer step; 0.04 in the code's default, rising to
            0.07 over the first 30 epochs in the longer recipes.
        center_momentum: momentum of the center; 0.9 in the paper.
        momentum: momentum of the teacher at each optimizer step; None: CosineSchedule(0.996, 1.0),
            the paper's; it starts at 0.9995 for a batch of 256.
        freeze_last_layer_epochs: epochs in which the student's prototypes are frozen; 1 in the
            paper.
        optimizer: see `SSLMethod`; AdamW for ViT, SGD for ResNet-50 in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine to 1e-6.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in the paper.

    The first two views are the large crops: `transforms.multi_crop_views("dino")`.

    Example:
        >>> from sslzoo.backbones import small_vit
        >>> vit = small_vit(8, 4, width=16, depth=2, num_heads=2)
        >>> method = DINO(vit, DINOHead(16, 10, hidden_dim=12, bottleneck_dim=6))
        >>> views = [torch.rand(4, 3, size, size) for size in (8, 8, 4)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['dino']
    """

    takes = ViewSpec(2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: DINOHead,
        student_temperature: float = 0.1,
        teacher_temperature: Schedule | float = 0.04,
        center_momentum: float = 0.9,
        momentum: Schedule | float | None = None,
        freeze_last_layer_epochs: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        self.projector = projector
        self.teacher_backbone = without_drop_path(frozen_copy(backbone))
        self.teacher_projector = frozen_copy(projector)
        self.center = Center(output_dim(backbone, projector), center_momentum)
        self.student_temperature = student_temperature
        self.teacher_temperature = as_schedule(teacher_temperature)
        self.momentum = CosineSchedule(0.996, 1.0) if momentum is None else as_schedule(momentum)
        self.freeze_last_layer_epochs = freeze_last_layer_epochs

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.backbone, self.teacher_backbone), (self.projector, self.teacher_projector)]

    def configure_callbacks(self) -> list[Callback]:
        freeze = FreezeHead("projector.last_layer", self.freeze_last_layer_epochs)
        return [EMA(self.momentum, when="after_step"), CommitMemory(), freeze]

    def encoder(self) -> nn.Module:
        """The teacher's backbone, which the paper evaluates."""
        return self.teacher_backbone

    def student(self, views: Sequence[Tensor]) -> Tensor:
        """Normalized bottlenecks. V times (B, C, S, S) -> (B, V, D)."""
        return self.projector.bottleneck(multi_crop(self.backbone, nn.Identity(), views))

    @torch.no_grad()
    def teacher(self, views: Sequence[Tensor]) -> Tensor:
        """Probabilities, centered and sharpened. V times (B, C, S, S) -> (B, V, K)."""
        logits = multi_crop(self.teacher_backbone, self.teacher_projector, views)
        self.center.stage(logits.mean(dim=(0, 1)), len(views) * len(logits))
        return teacher_probabilities(
            logits, self.center.read(), self.at_step(self.teacher_temperature)
        )

    def assignments(self, view: Tensor) -> Tensor:
        """The teacher's probabilities, for `OnlinePrototypes`. (B, C, S, S) -> (B, K)."""
        logits = self.teacher_projector(self.teacher_backbone(view))
        return teacher_probabilities(
            logits, self.center.read(), self.at_step(self.teacher_temperature)
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        t, s = self.teacher(batch.views[:2]), self.student(batch.views)  # (B, 2, K), (B, V, D)
        v, g = self.projector.last_layer.weight_v, self.projector.last_layer.weight_g
        return {"dino": dino(s, v, g, t, self.student_temperature)}
