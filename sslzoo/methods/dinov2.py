"""DINOv2: DINO and iBOT together, with KoLeo, and Gram anchoring as an option.

Oquab, Darcet, Moutakanni, Vo, Szafraniec, Khalidov, Fernandez, Haziza, Massa, El-Nouby et al.,
DINOv2: Learning Robust Visual Features without Supervision, 2023, https://arxiv.org/abs/2304.07193.
Gram anchoring: Simeoni et al., DINOv3, 2025, https://arxiv.org/abs/2508.10104.
Reference code: facebookresearch/dinov2 at b8931f7.

Deviations:
    1. KoLeo searches neighbors in the global batch; the code searches those of each GPU's samples.
    2. The patches' center is the mean over the masked patches of all ranks; the code's is the
       unweighted mean of the GPUs' means, which differs if the GPUs mask different numbers.
    3. Masks are drawn for the global batch: half of all its large crops, with ratios spread evenly
       over the range, on any number of ranks; the code draws them for each GPU's crops.
    4. A mask is built from at most 60 attempted rectangles, and at most 10 in a row that do not
       fit; the code only has the second limit. No rectangle is limited to half of the patches,
       which the code's ratios, at most 0.5, never exceed.
    5. The centers are updated after the optimizer step, with all micro-batches of a gradient
       accumulation; the code, which has none, adds each step's logits at the beginning of the next.
    6. Without small crops the loss of class tokens is the mean over its two pairs; the code's
       (reported) divides their sum by 3.
    7. Logits of the prototypes are computed in float32; the code's are float16 under autocast.
    8. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code.
    9. Gram anchoring: the Gram matrix of `level="batch"` is that of the global batch, the code's
       (DINOv3) that of each GPU's samples; the Gram teacher's crops are resized from the image at
       once, the code resizes the box to the larger of both sizes and then again; they are at least
       as large as the student's, in the code of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import multi_crop
from sslzoo.backbones.checks import check_masked_vit
from sslzoo.backbones.drop_path import without_drop_path
from sslzoo.batch import Batch, ViewSpec, describe_views
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.gram import GramAnchoring, RefreshGramTeacher
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.checks import check_choice, check_interval, check_positive
from sslzoo.distributed import row_layout
from sslzoo.heads import DINOHead
from sslzoo.losses import dino, ibot_selected, koleo, sinkhorn, teacher_probabilities
from sslzoo.masks import StratifiedBlockMasks
from sslzoo.memory import Center
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    frozen_copy,
    output_dim,
    step_keys,
)
from sslzoo.optim import CosineSchedule, Schedule, ZeroRateFirst, as_schedule, exempt_bias_and_norm
from sslzoo.random import run_keys, run_permutation


class DINOv2(SSLMethod):
    """DINO on class tokens, iBOT on masked patches, and class tokens that spread apart.

    Args:
        backbone: a ViT with a mask token and a class token, also with registers; (B, C, S, S) ->
            (B, num_features), and `forward_tokens`.
        projector: num_features -> K, for class tokens; K is 65,536 in the paper's ImageNet-1k
            recipe and 131,072 in the longer ones. Its prototypes' lengths are trained in the code
            (`norm_last_layer=False`).
        patch_projector: num_features -> K', for patches; None: the projector. 131,072 in the longer
            recipes, whose projector then has a bottleneck of 384.
        masks: draws the patches of the large crops that are masked for the student; None:
            StratifiedBlockMasks(), the paper's.
        centering: "center", the default of the code, or "sinkhorn", of its longer recipes.
        student_temperature: tau_s; 0.1 in the code.
        teacher_temperature: tau_t at each optimizer step, of class tokens and patches; 0.04 rising
            to 0.07 over 30 epochs in the code.
        center_momentum: momentum of both centers; 0.9 in the code.
        momentum: momentum of the teacher at each optimizer step; None: CosineSchedule(0.992, 1.0),
            the code's; it starts at 0.994 in the longer recipes.
        patch_weight: weight of the patches' loss; 1 in the code.
        koleo_weight: weight of KoLeo, summed over the two large crops; 0.1 in the code.
        gram: Gram anchoring (DINOv3); None: without.
        freeze_last_layer_epochs: epochs in which the rate of the student's prototypes is 0, while
            the optimizer's averages move; 1 in the code.
        optimizer: see `SSLMethod`; AdamW in the code.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine to 1e-6.
        parameter_groups: see `SSLMethod`; the code's recipes have LayerDecay(0.9, None, 0.2, True).

    The first two views are the large crops: `transforms.multi_crop_views("dinov2")`.

    Example:
        >>> from sslzoo.backbones import small_vit
        >>> vit = small_vit(12, 4, width=16, depth=2, num_heads=2, mask_token=True, registers=1)
        >>> head = DINOHead(16, 10, hidden_dim=12, bottleneck_dim=6, norm_last_layer=False)
        >>> method = DINOv2(vit, head)
        >>> views = [torch.rand(4, 3, size, size) for size in (12, 12, 4)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['cls', 'patch', 'koleo']
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: DINOHead,
        patch_projector: DINOHead | None = None,
        masks: StratifiedBlockMasks | None = None,
        centering: Literal["center", "sinkhorn"] = "center",
        student_temperature: float = 0.1,
        teacher_temperature: Schedule | float = 0.07,
        center_momentum: float = 0.9,
        momentum: Schedule | float | None = None,
        patch_weight: float = 1.0,
        koleo_weight: float = 0.1,
        gram: GramAnchoring | None = None,
        freeze_last_layer_epochs: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        epochs = freeze_last_layer_epochs
        check_interval("freeze_last_layer_epochs", epochs, 0, math.inf, "[)")
        last = ["projector.last_layer"]
        last += [] if patch_projector is None else ["patch_projector.last_layer"]
        groups = ZeroRateFirst(last, epochs, parameter_groups)
        super().__init__(backbone, optimizer, schedule, groups)
        check_masked_vit(backbone)
        parts = {"projector": projector, "patch_projector": patch_projector}
        for name, part in parts.items():
            if not isinstance(part, DINOHead | None):
                raise ValueError(f"{name} must be a DINOHead, got {type(part).__name__}")
        if not isinstance(masks, StratifiedBlockMasks | None):
            raise ValueError(f"masks must be StratifiedBlockMasks, got {type(masks).__name__}")
        if not isinstance(gram, GramAnchoring | None):
            raise ValueError(f"gram must be a GramAnchoring, got {type(gram).__name__}")
        check_positive("student_temperature", student_temperature)
        if isinstance(teacher_temperature, int | float):
            check_positive("teacher_temperature", teacher_temperature)
        check_interval("center_momentum", center_momentum, 0, 1, "[)")
        check_choice("centering", centering, ("center", "sinkhorn"))
        for name, weight in (("patch_weight", patch_weight), ("koleo_weight", koleo_weight)):
            check_interval(name, weight, 0, math.inf, "[)")
        self.num_prefix = int(getattr(backbone, "num_prefix", 1))
        self.projector, self.patch_projector = projector, patch_projector
        self.teacher_backbone = without_drop_path(frozen_copy(backbone))
        self.teacher_projector = frozen_copy(projector)
        self.teacher_patch_projector = frozen_copy(patch_projector) if patch_projector else None
        self.center = Center(output_dim(backbone, projector), center_momentum)
        patch_dim = output_dim(backbone, patch_projector or projector)
        self.patch_center = Center(patch_dim, center_momentum)
        self.masks, self.centering = masks or StratifiedBlockMasks(), centering
        self.student_temperature = student_temperature
        self.teacher_temperature = as_schedule(teacher_temperature, "teacher_temperature")
        momentum = CosineSchedule(0.992, 1.0) if momentum is None else momentum
        self.momentum = as_schedule(momentum, "momentum")
        self.patch_weight, self.koleo_weight = patch_weight, koleo_weight
        self.gram = gram
        if gram is not None:
            gram.attach(self.teacher_backbone)
        self.num_gram_views = 2 if gram is not None and gram.own_crops else 0
        self.takes = ViewSpec(2 + self.num_gram_views, alike=2, kind="images")

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        pairs = [(self.backbone, self.teacher_backbone), (self.projector, self.teacher_projector)]
        if self.patch_projector is None or self.teacher_patch_projector is None:
            return pairs
        return [*pairs, (self.patch_projector, self.teacher_patch_projector)]

    def configure_callbacks(self) -> list[Callback]:
        gram = [] if self.gram is None else [RefreshGramTeacher()]
        return [EMA(self.momentum, when="after_step"), CommitMemory(), *gram]

    def encoder(self) -> nn.Module:
        """The teacher's backbone, which the paper evaluates."""
        return self.teacher_backbone

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        large, small, own = self.split(batch)
        u = torch.stack(large, dim=1).flatten(0, 1)  # (2B, C, S, S)
        m, chosen, w = self.mask(batch)  # (2B, L), (R,), (R,)
        t_cls, t_patch = self.teacher(u, chosen, w)  # (B, 2, K), (R, K')
        s_cls, s_patch, cls, patches = self.student(u, m, chosen, small)
        C, P = self.projector.last_layer, (self.patch_projector or self.projector).last_layer
        tau = self.student_temperature
        loss_cls = dino(s_cls, C.weight_v, C.weight_g, t_cls, tau)
        loss_patch = ibot_selected(s_patch, P.weight_v, P.weight_g, t_patch, w, len(u), tau)
        terms = {"cls": loss_cls, "patch": self.patch_weight * loss_patch}
        if self.koleo_weight:
            terms["koleo"] = self.koleo_weight * (koleo(cls[:, 0]) + koleo(cls[:, 1]))
        if self.gram is not None:
            v = torch.stack(own, dim=1).flatten(0, 1) if own else u
            terms["gram"] = self.gram_loss(self.gram, patches, v, u, m)
        return terms

    def split(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The large and small crops, and the Gram teacher's own."""
        end = len(batch.views) - self.num_gram_views
        own = list(batch.views[end:])
        sizes = [view[0].numel() for view in batch.views]
        if any(size >= sizes[0] for size in sizes[2:end]):
            raise ValueError(
                "views after the first two of DINOv2 must be smaller crops, got "
                f"{describe_views(batch.views)}; those of gram_size need gram: GramAnchoring with "
                "own_crops: true"
            )
        pixels = [view[0].numel() for view in (batch.views[0], *own)]
        if own and (own[0].shape != own[1].shape or pixels[1] < pixels[0]):
            raise ValueError(
                "the last two views must be the Gram teacher's, at least as large as the first "
                f"ones (gram_size of multi_crop_views), got {describe_views(batch.views)}"
            )
        return list(batch.views[:2]), list(batch.views[2:end]), own

    def mask(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Masks of the large crops, and the masked patches of all of them in one list.

        Returns:
            (2B, L) bool; (R,) positions in the 2B L patches, masked ones first, where R is known
            without the device; (R,) their weights, 1 / number of masked patches of the crop, or 0.
        """
        height, width = self.grid(batch.views[0])
        length = height * width
        if int(length * self.masks.ratio[1]) < self.masks.smallest:
            raise ValueError(
                f"the grid of the large crops must have room for a mask of {self.masks.smallest} "
                f"patches with ratios up to {self.masks.ratio[1]}, got {height} x {width} patches"
            )
        rows = row_layout(len(batch.views[0]))
        total, device = 2 * rows.total, batch.views[0].device
        where = "masks", self.step
        order = run_keys(self.seed, *where, device=device).permutation("crops", total)
        strata = order.view(2, rows.total)[:, rows.own].flatten()  # crop by crop, (2B,)
        keys = step_keys(self, batch).fold_each("mask", 2)
        masks = self.masks(keys, strata, total, height, width)
        m = masks.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)  # sample by sample
        on_host = run_permutation("crops", total, self.seed, *where)
        own = [i for crop in range(2) for i in on_host[crop * rows.total :][rows.own]]
        R = max(1, sum(self.masks.bounds(own, total, length)))
        weight = (m / m.sum(dim=1, keepdim=True).clamp(min=1)).flatten()
        chosen = m.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:R]
        return m, chosen, weight[chosen]

    def grid(self, view: Tensor) -> tuple[int, int]:
        """Height and width of a view in patches."""
        patch = cast(Any, self.backbone).patch_size
        return view.shape[2] // patch, view.shape[3] // patch

    def student(
        self, u: Tensor, m: Tensor, chosen: Tensor, small: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bottlenecks of class tokens and masked patches; large crops are masked.

        Shapes: u (2B, C, S, S), m (2B, L), chosen (R,) -> class tokens of all crops (B, V, D) and
        patches (R, D'); features of the large crops: class tokens (B, 2, F), patches (2B, L, F).
        """
        tokens = cast(Any, self.backbone).forward_tokens(u, mask=m)  # (2B, prefix + L, F)
        features = tokens[:, 0].unflatten(0, (-1, 2))  # (B, 2, F)
        patches = tokens[:, self.num_prefix :]
        cls = features
        if small:
            cls = torch.cat([cls, multi_crop(self.backbone, nn.Identity(), small)], dim=1)
        head = self.patch_projector or self.projector
        selected = patches.flatten(0, 1)[chosen]
        return self.projector.bottleneck(cls), head.bottleneck(selected), features, patches

    @torch.no_grad()
    def teacher(self, u: Tensor, chosen: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the large crops, without masks: class tokens, and masked patches.

        Shapes: u (2B, C, S, S), chosen (R,), w (R,) -> (B, 2, K), (R, K').
        """
        tokens = cast(Any, self.teacher_backbone).forward_tokens(u)
        head = self.teacher_patch_projector or self.teacher_projector
        cls = self.teacher_projector(tokens[:, 0])  # (2B, K)
        z = head.bottleneck(tokens[:, self.num_prefix :].flatten(0, 1)[chosen])  # (R, D')
        patches = head.last_layer(z)
        counted = (w > 0).to(z.dtype)
        if self.centering == "center":
            count = counted.sum()
            mean = (z * counted[:, None]).sum(dim=0) / count.clamp(min=1)
            self.center.stage(cls.mean(dim=0), len(cls))
            self.patch_center.stage(head.last_layer(mean), count)
        q_cls, q_patch = self.targets(cls, self.center), self.targets(patches, self.patch_center, w)
        return q_cls.unflatten(0, (-1, 2)), q_patch

    def targets(self, logits: Tensor, center: Center, weight: Tensor | None = None) -> Tensor:
        """The teacher's probabilities, by centering or by Sinkhorn-Knopp. (R, K) -> (R, K)."""
        tau = self.at_step(self.teacher_temperature)
        if self.centering == "center":
            return teacher_probabilities(logits, center.read(), tau)
        if weight is None:
            return sinkhorn(logits, tau)
        is_masked = weight > 0  # without any in the global batch, the assignments are not defined
        return sinkhorn(logits, tau, weight=is_masked).masked_fill(~is_masked[:, None], 0.0)

    def gram_loss(
        self, gram: GramAnchoring, patches: Tensor, v: Tensor, u: Tensor, m: Tensor
    ) -> Tensor:
        """The weighted loss of Gram anchoring; 0 before its first step."""
        weight = self.at_step(gram.weight)
        if self.step < gram.from_step or weight == 0:
            return patches.new_zeros(())
        return weight * gram(patches, v, self.grid(u), self.teacher_backbone, m)

    def assignments(self, view: Tensor) -> Tensor:
        """The teacher's probabilities, for `OnlinePrototypes`. (B, C, S, S) -> (B, K)."""
        logits = self.teacher_projector(self.teacher_backbone(view))
        return teacher_probabilities(
            logits, self.center.read(), self.at_step(self.teacher_temperature)
        )
