"""iBOT: image BERT pre-training with an online tokenizer.

Zhou, Wei, Wang, Shen, Xie, Yuille and Kong, ICLR 2022, https://arxiv.org/abs/2111.07832.
Reference code: bytedance/ibot at da316d8.

Deviations:
    1. One head serves class and patch tokens by default, as in the paper's recipes; the code's
       default has separate prototypes for the student's patches, which are `patch_prototypes` with
       `teacher_shares_prototypes` here.
    2. A mask is built from at most 60 attempted rectangles, and at most 10 in a row that do not
       fit; the code only has the second limit (`masks.BlockMasks`).
    3. Heads and losses see as many patches per crop as a mask can have, masked ones first; the
       code's see all patches, with the weight 0 for unmasked ones. The loss is the same.
    4. The centers are updated after the optimizer step, the code's at the end of the loss. The
       patches' center uses the logits of their mean bottleneck, which equal their mean logits.
    5. Logits of the prototypes are computed in float32; the code's are float16 under autocast.
    6. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import multi_crop
from sslzoo.backbones.checks import check_masked_vit
from sslzoo.backbones.drop_path import without_drop_path
from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.freeze import FreezeHead
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.checks import check_interval
from sslzoo.heads import DINOHead, Prototypes
from sslzoo.losses import dino, ibot_patches, teacher_probabilities
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
    """DINO on class tokens, and masked patches predict the teacher's probabilities for them.

    Args:
        backbone: a ViT with a mask token and a class token, also with registers; (B, C, S, S) ->
            (B, num_features), and `forward_tokens`.
        projector: num_features -> K, for class and patch tokens; K is 8192 in the paper.
        masks: draws the patches of the large crops that are masked for the student; None:
            BlockMasks(), the paper's.
        student_temperature: tau_s; 0.1 in the paper.
        teacher_temperature: tau_t of class tokens at each optimizer step; 0.04 rising to 0.07 over
            30 epochs in the paper.
        teacher_patch_temperature: tau_t' of patches at each optimizer step; 0.04 rising to 0.07
            over 30 epochs in the paper.
        center_momentum: momentum of both centers; 0.9 in the paper.
        patch_center_momentum: momentum of the patches' center (the code's center_momentum2); None:
            center_momentum.
        momentum: momentum of the teacher at each optimizer step; None: CosineSchedule(0.996, 1.0),
            the paper's.
        cls_weight: weight of the class tokens' loss (lambda1); 1 in the paper.
        patch_weight: weight of the patches' loss (lambda2); 1 in the paper.
        patch_prototypes: prototypes of the patches (the code's shared_head=False), which take the
            projector's bottleneck; None: the projector's own. 8192 in the code.
        teacher_shares_prototypes: whether the teacher's patches nevertheless have the prototypes of
            its projector (the code's shared_head_teacher=True).
        freeze_last_layer_epochs: epochs in which the student's prototypes are frozen; 1 in the
            code.
        mask_from_epoch: epochs before the first masks, in which only class tokens are scored (the
            code's pred_start_epoch); 0 in the paper.
        optimizer: see `SSLMethod`; AdamW in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine to 1e-6.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in the paper.

    The first two views are the large crops: `transforms.multi_crop_views("dino")`.

    Example:
        >>> from sslzoo.backbones import small_vit
        >>> vit = small_vit(12, 4, width=16, depth=2, num_heads=2, mask_token=True)
        >>> method = IBOT(vit, DINOHead(16, 10, hidden_dim=12, bottleneck_dim=6))
        >>> views = [torch.rand(4, 3, size, size) for size in (12, 12, 4)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['cls', 'patch']
    """

    takes = ViewSpec(2, alike=2, kind="images")

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
        cls_weight: float = 1.0,
        patch_center_momentum: float | None = None,
        patch_prototypes: Prototypes | None = None,
        teacher_shares_prototypes: bool = False,
        mask_from_epoch: float = 0.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        check_masked_vit(backbone)
        self.num_prefix = int(getattr(backbone, "num_prefix", 1))
        dim = output_dim(backbone, projector)
        self.projector = projector
        self.teacher_backbone = without_drop_path(frozen_copy(backbone))
        self.teacher_projector = frozen_copy(projector)
        self.patch_prototypes, patch_dim = patch_prototypes, dim
        if patch_prototypes is not None:
            width = projector.last_layer.in_features
            if patch_prototypes.in_features != width:
                raise ValueError(
                    f"patch_prototypes must have in_features {width}, the projector's bottleneck, "
                    f"got {patch_prototypes.in_features}"
                )
            patch_dim = patch_prototypes.out_features
        if teacher_shares_prototypes and (patch_prototypes is None or patch_dim != dim):
            raise ValueError(
                f"patch_prototypes must have out_features {dim}, the projector's, with "
                f"teacher_shares_prototypes=True, got {patch_prototypes and patch_dim}"
            )
        self.teacher_patch_prototypes: Prototypes | None = None
        if patch_prototypes is not None and not teacher_shares_prototypes:
            self.teacher_patch_prototypes = frozen_copy(patch_prototypes)
        if patch_center_momentum is None:
            patch_center_momentum = center_momentum
        self.center = Center(dim, center_momentum)
        self.patch_center = Center(patch_dim, patch_center_momentum)
        self.masks = masks or BlockMasks()
        self.student_temperature = student_temperature
        self.momentum = CosineSchedule(0.996, 1.0) if momentum is None else as_schedule(momentum)
        self.teacher_temperature = as_schedule(teacher_temperature)
        self.teacher_patch_temperature = as_schedule(teacher_patch_temperature)
        for name, weight in (("cls_weight", cls_weight), ("patch_weight", patch_weight)):
            check_interval(name, weight, 0, math.inf, "[)")
        self.cls_weight, self.patch_weight = cls_weight, patch_weight
        self.freeze_last_layer_epochs = freeze_last_layer_epochs
        check_interval("mask_from_epoch", mask_from_epoch, 0, math.inf, "[)")
        self.mask_from_epoch = mask_from_epoch

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        pairs = [(self.backbone, self.teacher_backbone), (self.projector, self.teacher_projector)]
        if self.patch_prototypes is None or self.teacher_patch_prototypes is None:
            return pairs
        return [*pairs, (self.patch_prototypes, self.teacher_patch_prototypes)]

    def configure_callbacks(self) -> list[Callback]:
        frozen = ["projector.last_layer"]
        frozen += [] if self.patch_prototypes is None else ["patch_prototypes"]
        freeze = [FreezeHead(name, self.freeze_last_layer_epochs) for name in frozen]
        return [EMA(self.momentum, when="after_step"), CommitMemory(), *freeze]

    def encoder(self) -> nn.Module:
        """The teacher's backbone, which the paper evaluates."""
        return self.teacher_backbone

    def mask(self, batch: Batch) -> Tensor:
        """Masks of the two large crops, keyed by sample, step and view. (B, 2, L) bool."""
        patch = cast(Any, self.backbone).patch_size
        height, width = (side // patch for side in batch.views[0].shape[2:])
        if self.step < self.mask_from_epoch * self.run_length.steps_per_epoch:
            view = batch.views[0]
            return view.new_zeros(len(view), 2, height * width, dtype=torch.bool)
        mask = self.masks(step_keys(self, batch).fold_each("mask", 2), height, width)
        return mask.unflatten(0, (2, -1)).transpose(0, 1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        u = torch.stack(batch.views[:2], dim=1).flatten(0, 1)  # the large crops, (2B, C, S, S)
        m = self.mask(batch).flatten(0, 1)  # (2B, L)
        # Only the first M patches are scored, masked ones first: no mask has more than M.
        M = max(1, self.masks.max_masked(m.shape[1]))
        m_first, first = (x[:, :M] for x in m.sort(dim=1, descending=True, stable=True))
        t_cls, t_patch = self.teacher(u, first)  # (B, 2, K), (2B, M, K)
        s_cls, s_patch = self.student(u, m, first, batch.views[2:])  # (B, V, D), (2B, M, D)
        C, P = self.projector.last_layer, self.patch_prototypes or self.projector.last_layer
        tau = self.student_temperature
        loss_cls = dino(s_cls, C.weight_v, C.weight_g, t_cls, tau)
        loss_patch = ibot_patches(s_patch, P.weight_v, P.weight_g, t_patch, m_first, tau)
        return {"cls": self.cls_weight * loss_cls, "patch": self.patch_weight * loss_patch}

    def student(
        self, u: Tensor, m: Tensor, first: Tensor, small: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Bottlenecks of the masked large crops: class tokens of all crops, and patches.

        Shapes: u (2B, C, S, S), m (2B, L), first (2B, M) -> (B, V, D), (2B, M, D).
        """
        tokens = cast(Any, self.backbone).forward_tokens(u, mask=m)  # (2B, R + L, F)
        cls = tokens[:, 0].unflatten(0, (-1, 2))  # (B, 2, F)
        if small:
            cls = torch.cat([cls, multi_crop(self.backbone, nn.Identity(), small)], dim=1)
        head = self.projector
        return head.bottleneck(cls), head.bottleneck(_select(tokens[:, self.num_prefix :], first))

    @torch.no_grad()
    def teacher(self, u: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the large crops, without masks: class tokens, and patches.

        Shapes: u (2B, C, S, S), first (2B, M) -> (B, 2, K), (2B, M, K).
        """
        head = self.teacher_projector
        patches = self.teacher_patch_prototypes or head.last_layer
        z = head.bottleneck(cast(Any, self.teacher_backbone).forward_tokens(u))  # (2B, R + L, D)
        z_patch = z[:, self.num_prefix :]
        cls = head.last_layer(z[:, 0]).unflatten(0, (-1, 2))
        t_cls = teacher_probabilities(
            cls, self.center.read(), self.at_step(self.teacher_temperature)
        )
        t_patch = teacher_probabilities(
            patches(_select(z_patch, first)),
            self.patch_center.read(),
            self.at_step(self.teacher_patch_temperature),
        )
        self.center.stage(cls.mean(dim=(0, 1)), len(u))
        self.patch_center.stage(patches(z_patch.mean(dim=(0, 1))), len(u))
        return t_cls, t_patch

    def assignments(self, view: Tensor) -> Tensor:
        """The teacher's probabilities, for `OnlinePrototypes`. (B, C, S, S) -> (B, K)."""
        logits = self.teacher_projector(self.teacher_backbone(view))
        return teacher_probabilities(
            logits, self.center.read(), self.at_step(self.teacher_temperature)
        )


def _select(patches: Tensor, index: Tensor) -> Tensor:
    """Patches at the given positions of each crop. (n, L, F), (n, M) -> (n, M, F)."""
    return patches.gather(1, index[..., None].expand(-1, -1, patches.shape[2]))
