"""MSN: masked siamese networks for label-efficient learning.

Assran, Caron, Misra, Bojanowski, Bordes, Vincent, Joulin, Rabbat and Ballas, ECCV 2022,
https://arxiv.org/abs/2204.07141. Reference code: facebookresearch/msn at 4388dc1.

Deviations:
    1. The gradient of the prototypes is that of the mean over the global batch; the code sums it
       over W GPUs, which makes it W times as large (AdamW's steps nearly hide the factor).
    2. The kept patches are keyed by (seed, step), the same for all samples, ranks and micro-batches
       of an optimizer step; the code draws them from torch's generator, anew on each GPU.
    3. Views 1 to random_views are masked, whatever their size; the code masks the first run of
       anchors of one size, which also has the focal views if they are as large.
    4. `forward` gives the target network's class token after the final norm; the code's evaluation
       takes that of the last blocks before the norm.
    5. Assignments, their powers and Sinkhorn are computed on logarithms in float32 at least; the
       code raises float32 probabilities to powers, which vanish below 1e-38.
    6. Our recipes train in bfloat16 mixed precision, the code's in float32 (`use_fp16: false`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import check_pools_token, multi_crop
from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.checks import check_interval, check_positive, check_whole
from sslzoo.losses import msn, msn_targets
from sslzoo.losses.msn import log_assignments
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, frozen_copy, output_dim
from sslzoo.optim import (
    LinearSchedule,
    Schedule,
    StretchedSchedule,
    as_schedule,
    exempt_bias_norm_and_prototypes,
)
from sslzoo.random import run_keys


class MSN(SSLMethod):
    """Masked and focal views predict the target network's soft prototypes of another view.

    The first view is the target's, the next ones are masked, all others are focal views, which are
    whole: `transforms.msn_views()`. The target network keeps the batch statistics of its head, as
    in the code.

    Args:
        backbone: a ViT with a class token, in the paper with `resample="exact"`.
        projector: num_features -> D: three Linears with batch norm and GELU between, of width 2048
            and D = 256 in the paper.
        num_prototypes: K; 1024 in the paper.
        random_views: number of masked views; 1 in the paper.
        drop_fraction: fraction of a masked view's patches that are dropped (patch_drop); 0.15 in
            the code's recipe for ViT-S/16.
        temperature: tau of both networks' assignments; 0.1 in the paper.
        sharpening: T at each optimizer step; targets are raised to the power of 1 / T; 0.25 in the
            paper.
        mean_entropy_weight: lambda, weight of the mean-entropy maximization; 1 in the paper.
        entropy_weight: weight of the predictions' entropy; 0 in the code's recipe for ViT-S/16.
        sinkhorn_iterations: iterations of Sinkhorn on the targets of all ranks; 3 in the code. 0:
            none.
        label_smoothing: weight of the uniform distribution in each prototype's label; 0 in the
            code's recipes.
        momentum: of the target network at each optimizer step; None: linear from 0.996 toward 1 in
            1.25 times the run, as in the code (it ends at 0.9992).
        optimizer: see `SSLMethod`; AdamW in the paper, whose weight decay `WeightDecaySchedule`
            raises from 0.04.
        schedule: see `SSLMethod`; 15 epochs of warm-up, then a cosine, in `StretchedSchedule`.
        parameter_groups: see `SSLMethod`; biases, norms and prototypes are not decayed in the code.

    Example:
        >>> from sslzoo.backbones import small_vit
        >>> from sslzoo.heads import MLP
        >>> vit = small_vit(8, 2, width=16, depth=2, num_heads=2, resample="exact")
        >>> head = MLP([16, 12, 6], bias=False, activation="gelu")
        >>> method = MSN(vit, head, num_prototypes=5, entropy_weight=0.5)
        >>> views = [torch.rand(4, 3, size, size) for size in (8, 8, 4)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['cross_entropy', 'mean_entropy', 'entropy']
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        num_prototypes: int = 1024,
        random_views: int = 1,
        drop_fraction: float = 0.15,
        temperature: float = 0.1,
        sharpening: Schedule | float = 0.25,
        mean_entropy_weight: float = 1.0,
        entropy_weight: float = 0.0,
        sinkhorn_iterations: int = 3,
        label_smoothing: float = 0.0,
        momentum: Schedule | float | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_norm_and_prototypes,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        if not callable(getattr(backbone, "forward_tokens", None)) or (
            getattr(backbone, "cls_token", None) is None
        ):
            raise ValueError(
                "backbone must be a ViT with a class token (timm_vit, small_vit), got "
                f"{type(backbone).__name__}"
            )
        check_pools_token(backbone)
        check_whole("num_prototypes", num_prototypes, 2)
        check_whole("random_views", random_views, 1)
        check_whole("sinkhorn_iterations", sinkhorn_iterations, 0)
        check_interval("drop_fraction", drop_fraction, 0, 1, "[)")
        check_interval("label_smoothing", label_smoothing, 0, 1, "[)")
        check_positive("temperature", temperature)
        check_interval("mean_entropy_weight", mean_entropy_weight, 0, math.inf, "[)")
        check_interval("entropy_weight", entropy_weight, 0, math.inf, "[)")
        self.prototypes = nn.Linear(output_dim(backbone, projector), num_prototypes, bias=False)
        self.projector = projector
        self.teacher_backbone = frozen_copy(backbone)
        self.teacher_projector = frozen_copy(projector)
        self.random_views, self.drop_fraction = random_views, drop_fraction
        self.temperature, self.sharpening = temperature, as_schedule(sharpening, "sharpening")
        self.mean_entropy_weight, self.entropy_weight = mean_entropy_weight, entropy_weight
        self.sinkhorn_iterations, self.label_smoothing = sinkhorn_iterations, label_smoothing
        linear = LinearSchedule(0.996, 1.0)
        momentum = StretchedSchedule(linear) if momentum is None else momentum
        self.momentum = as_schedule(momentum, "momentum")
        whole = 1 + random_views
        self.takes = ViewSpec(whole, alike=whole, kind="images", large_first=True)

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.backbone, self.teacher_backbone), (self.projector, self.teacher_projector)]

    def configure_callbacks(self) -> list[Callback]:
        return [EMA(self.momentum, when="after_step")]

    def encoder(self) -> nn.Module:
        """The target network's backbone, which the paper evaluates."""
        return self.teacher_backbone

    def draw_patches(self, view: Tensor) -> Tensor:
        """The patches that masked views keep, in random order. (B, C, H, W) -> (K,) int64."""
        sides = [side // cast(Any, self.backbone).patch_size for side in view.shape[2:]]
        keys = run_keys(self.seed, self.step, device=view.device)
        order = keys.permutation("patches", sides[0] * sides[1])[0]
        kept = int(len(order) * (1 - self.drop_fraction))
        if kept < 1:
            raise ValueError(
                f"drop_fraction must leave a patch of the {len(order)} of a masked view, got "
                f"{self.drop_fraction}"
            )
        return order[:kept]

    def anchors(self, views: Sequence[Tensor], keep: Tensor) -> Tensor:
        """Projections of the masked and the focal views. V times (B, C, S, S) -> (B, V, D)."""
        masked, focal = views[: self.random_views], views[self.random_views :]
        groups = [multi_crop(partial(self._project_masked, keep=keep), nn.Identity(), masked)]
        if focal:
            net = nn.Sequential(self.backbone, self.projector)
            groups.append(multi_crop(net, nn.Identity(), focal))
        return torch.cat(groups, dim=1)

    def _project_masked(self, x: Tensor, keep: Tensor) -> Tensor:
        tokens = cast(Any, self.backbone).forward_tokens(x, keep=keep.expand(len(x), -1))
        return self.projector(tokens[:, 0])

    @torch.no_grad()
    def target(self, view: Tensor) -> Tensor:
        """Sharpened, balanced assignments of whole views. (B, C, S, S) -> (B, K)."""
        z = self.teacher_projector(self.teacher_backbone(view))
        return msn_targets(
            z,
            self.prototypes.weight,
            self.temperature,
            self.at_step(self.sharpening),
            self.sinkhorn_iterations,
            self.label_smoothing,
        )

    def assignments(self, view: Tensor) -> Tensor:
        """The target network's assignments, for `OnlinePrototypes`. (B, C, S, S) -> (B, K)."""
        z = self.teacher_projector(self.teacher_backbone(view))
        p = log_assignments(z, self.prototypes.weight, self.temperature, self.label_smoothing)
        return p.exp()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        target, *anchors = batch.views
        t = self.target(target)  # (B, K)
        z = self.anchors(anchors, self.draw_patches(anchors[0]))  # (B, V, D)
        terms = msn(z, self.prototypes.weight, t, self.temperature, self.label_smoothing)
        return {
            "cross_entropy": terms.cross_entropy,
            "mean_entropy": self.mean_entropy_weight * terms.mean_entropy,
            "entropy": self.entropy_weight * terms.entropy,
        }
