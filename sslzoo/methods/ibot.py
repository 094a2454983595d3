"""iBOT: image BERT pre-training with an online tokenizer.

Zhou, Wei, Wang, Shen, Xie, Yuille and Kong, ICLR 2022, https://arxiv.org/abs/2111.07832.
Reference code: bytedance/ibot at da316d8.

Deviations:
    1. The head is one for class and patch tokens, as in the paper's recipes; the code's default
       has prototypes of their own for patches.
    2. Masks are tried 60 rectangles long at most, see `masks.BlockMasks`.
    3. Heads and losses see as many patches of a crop as a mask can hide, the hidden ones first;
       the code's see all, and weigh those that are not hidden with 0. The numbers are the same.
    4. The patches' center moves by the logit of their mean bottleneck, which is the mean of their
       logits; both centers after the optimizer step, the code's at the end of the loss.
    5. Prototypes are scored in float32; the code scores them in float16 under autocast.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.backbones import multi_crop
from sslzoo.backbones.vit import without_drop_path
from sslzoo.batch import Batch
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.freeze import FreezeUntil
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.heads import DINOHead
from sslzoo.losses import dino, ibot_patches, teacher_probabilities
from sslzoo.losses.precision import at_least_float32
from sslzoo.masks import BlockMasks
from sslzoo.memory import Center
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    frozen_copy,
    output_dim,
    step_keys,
)
from sslzoo.optim import CosineSchedule, Schedule, as_schedule, exempt_bias_and_norm


class IBOT(SSLMethod):
    """DINO on class tokens; and hidden patches predict what the teacher sees in their place.

    Args:
        backbone: a ViT with a mask token; (B, C, S, S) -> (B, num_features), and `forward_tokens`.
        projector: num_features -> K, for class and patch tokens; K is 8192 in the paper.
        masks: which patches of the large crops are hidden from the student.
        student_temperature: 0.1 in the paper.
        teacher_temperature: of class tokens, by optimizer step; 0.04 rising to 0.07 over 30 epochs.
        teacher_patch_temperature: of patches; likewise.
        center_momentum: of both centers; 0.9 in the paper.
        momentum: of the teacher; None: CosineSchedule(0.996, 1.0), the paper's.
        patch_weight: lambda 2; 1 in the paper.
        freeze_last_layer_epochs: epochs in which the student's prototypes stand still; 1 in the
            code.
        optimizer: see `SSLMethod`; AdamW.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine to 1e-6.
        parameter_groups: see `SSLMethod`; biases and norms are exempt.

    The two large crops are the first two views: `transforms.multi_crop_views("dino")`.

    Example:
        >>> from sslzoo.backbones import small_vit
        >>> vit = small_vit(12, 4, width=16, depth=2, num_heads=2, mask_token=True)
        >>> method = IBOT(vit, DINOHead(16, 10, hidden_dim=12, bottleneck_dim=6))
        >>> views = [torch.rand(4, 3, size, size) for size in (12, 12, 4)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['cls', 'patch']
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: DINOHead,
        masks: BlockMasks | None = None,
        student_temperature: float = 0.1,
        teacher_temperature: Schedule | float = 0.04,
        teacher_patch_temperature: Schedule | float = 0.04,
        center_momentum: float = 0.9,
        momentum: Schedule | float | None = None,
        patch_weight: float = 1.0,
        freeze_last_layer_epochs: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        if getattr(backbone, "mask_token", None) is None:
            raise ValueError(f"a ViT with mask_token=True wanted, got {type(backbone).__name__}")
        dim = output_dim(backbone, projector)
        self.projector = projector
        self.teacher_backbone = without_drop_path(frozen_copy(backbone))
        self.teacher_projector = frozen_copy(projector)
        self.center, self.patch_center = (Center(dim, center_momentum) for _ in range(2))
        self.masks = masks or BlockMasks()
        self.student_temperature = student_temperature
        self.momentum = CosineSchedule(0.996, 1.0) if momentum is None else as_schedule(momentum)
        self.teacher_temperature = as_schedule(teacher_temperature)
        self.teacher_patch_temperature = as_schedule(teacher_patch_temperature)
        self.patch_weight = patch_weight
        self.freeze_last_layer_epochs = freeze_last_layer_epochs

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.backbone, self.teacher_backbone), (self.projector, self.teacher_projector)]

    def configure_callbacks(self) -> list[Callback]:
        freeze = FreezeUntil("projector.last_layer", self.freeze_last_layer_epochs)
        return [EMA(self.momentum, when="after_step"), CommitMemory(), freeze]

    def encoder(self) -> nn.Module:
        """The teacher's backbone, which the paper evaluates."""
        return self.teacher_backbone

    def hide(self, batch: Batch) -> Tensor:
        """Masks of the two large crops, keyed by sample, step and view. (B, 2, L) bool."""
        patch = cast(Any, self.backbone).patch_size
        height, width = (side // patch for side in batch.views[0].shape[2:])
        mask = self.masks(step_keys(self, batch).fold_each("mask", 2), height, width)
        return mask.unflatten(0, (2, -1)).transpose(0, 1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        large, mask = torch.stack(batch.views[:2], dim=1), self.hide(batch)  # (B, 2, ...)
        large, mask = large.flatten(0, 1), mask.flatten(0, 1)  # (2B, ...)
        # hidden patches first, as many as any mask can hide
        hidden, place = mask.sort(dim=1, descending=True, stable=True)
        most = max(1, self.masks.most(mask.shape[1]))
        hidden, place = hidden[:, :most], place[:, :most]

        q_cls, q_patch = self.teacher(large, place)
        tokens = cast(Any, self.backbone).forward_tokens(large, mask=mask)
        cls = tokens[:, 0].unflatten(0, (-1, 2))  # (B, 2, F)
        if len(batch.views) > 2:
            small = multi_crop(self.backbone, nn.Identity(), batch.views[2:])
            cls = torch.cat([cls, small], dim=1)  # (B, V, F)
        z_cls = _bottleneck(self.projector, cls)
        z_patch = _bottleneck(self.projector, _take(tokens[:, 1:], place))
        v, g = self.projector.last_layer.weight_v, self.projector.last_layer.weight_g
        T = self.student_temperature
        patch = ibot_patches(z_patch, v, g, q_patch, hidden, T)
        return {"cls": dino(z_cls, v, g, q_cls, T), "patch": self.patch_weight * patch}

    @torch.no_grad()
    def teacher(self, large: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Its probabilities of class tokens, (B, 2, K), and of patches at `place`, (2B, M, K)."""
        head = self.teacher_projector
        z = _bottleneck(head, cast(Any, self.teacher_backbone).forward_tokens(large))
        logits = head.last_layer(z[:, 0]).unflatten(0, (-1, 2))
        q_cls = self.sharpen(logits)
        q_patch = teacher_probabilities(
            head.last_layer(_take(z[:, 1:], place)),
            self.patch_center.read(),
            self.teacher_patch_temperature(self.step, self.run_length),
        )
        self.center.stage(logits.mean(dim=(0, 1)), len(large))
        self.patch_center.stage(head.last_layer(z[:, 1:].mean(dim=(0, 1))), len(large))
        return q_cls, q_patch

    def sharpen(self, logits: Tensor) -> Tensor:
        """The teacher's probabilities of class tokens, at the present center and temperature."""
        temperature = self.teacher_temperature(self.step, self.run_length)
        return teacher_probabilities(logits, self.center.read(), temperature)

    def assignments(self, view: Tensor) -> Tensor:
        """The teacher's of the class token, for `OnlinePrototypes`. (B, C, S, S) -> (B, K)."""
        z = _bottleneck(self.teacher_projector, self.teacher_backbone(view))
        return self.sharpen(self.teacher_projector.last_layer(z))


def _bottleneck(head: DINOHead, x: Tensor) -> Tensor:
    """Normalized rows. (..., F) -> (..., D)."""
    rows = head.mlp(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    return F.normalize(at_least_float32(rows), dim=-1)


def _take(patches: Tensor, place: Tensor) -> Tensor:
    """Patches at those places of each crop. (n, L, F), (n, M) -> (n, M, F)."""
    return patches.gather(1, place[..., None].expand(-1, -1, patches.shape[2]))
