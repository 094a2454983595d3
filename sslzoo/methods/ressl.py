"""ReSSL: relational self-supervised learning with weak augmentation.

Zheng, You, Wang, Qian, Zhang, Wang and Xu, NeurIPS 2021, https://arxiv.org/abs/2107.09282.
Reference code: KyleZheng1997/ReSSL at 4d67daa.

Deviations:
    1. The shuffle is a keyed permutation of the global batch; the code broadcasts torch.randperm of
       rank 0.
    2. Batch norm "per GPU" is `bn_groups` of the backbone, for any number of GPUs. Running
       statistics average over groups; in the code those of rank 0 overwrite the others' before
       every forward pass.
    3. The queue is updated after the optimizer step, with the keys of all micro-batches of a
       gradient accumulation; the code updates it in the forward pass and has no accumulation.
    4. The queue may have any size; the code requires a multiple of the global batch.
    5. By default no norm is decayed; in the code those of the shortcuts are, whose names
       (`downsample.1`) lack "bn". `ExemptNamed` of the ImageNet recipes does as the code.
    6. Half precision is bfloat16 in our recipes; the code has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.checks import check_positive
from sslzoo.layers import encode_shuffled
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import relational
from sslzoo.memory import Queue
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    frozen_copy,
    output_dim,
    step_permutation,
)
from sslzoo.optim import Schedule, as_schedule, exempt_bias_and_norm


class ReSSL(SSLMethod):
    """Keep an image's similarities to a queue of others the same under strong augmentation.

    The first view is weak (crop and flip) and the teacher's; the others, of any sizes, are strong
    and the student's, as `ressl_views` makes them.

    Args:
        backbone: f; (B, C, H, W) -> (B, num_features); its `bn_groups` stands for the number of
            GPUs, 8 in the paper.
        projector: num_features -> D: Linear-ReLU-Linear of widths 4096 and 512 in the code.
        queue_size: K; 131072 in the code.
        student_temperature: tau_s; 0.1 in the paper.
        teacher_temperature: tau_t, below tau_s, so that the target is sharper; 0.04 in the paper.
        momentum: m of the teacher at each optimizer step; 0.999 in the code.
        shuffle: whether keys are computed on a permutation of the global batch, see `MoCo`.
        optimizer: see `SSLMethod`; SGD in the paper.
        schedule: see `SSLMethod`; 5 epochs of warm-up, then a cosine, in the paper.
        parameter_groups: see `SSLMethod`; names with "bn" or "bias" are not decayed in the code
            (`ExemptNamed`).

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> method = ReSSL(SmallResNet((8, 16), bn_groups=2), nn.Linear(16, 8), queue_size=20)
        >>> views = [torch.rand(4, 3, s, s) for s in (8, 8, 6)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['relational']
    """

    takes = ViewSpec(2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        queue_size: int = 131072,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        momentum: Schedule | float = 0.999,
        shuffle: bool = True,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        check_positive("student_temperature", student_temperature)
        check_positive("teacher_temperature", teacher_temperature)
        if teacher_temperature > student_temperature:
            raise ValueError(
                f"teacher_temperature must be at most {student_temperature}, student_temperature, "
                f"so that the target is sharper, got {teacher_temperature}"
            )
        self.queue = Queue(queue_size, output_dim(backbone, projector))
        self.projector = projector
        self.teacher_backbone = frozen_copy(backbone)
        self.teacher_projector = frozen_copy(projector)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.momentum, self.shuffle = as_schedule(momentum, "momentum"), shuffle

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.backbone, self.teacher_backbone), (self.projector, self.teacher_projector)]

    def configure_callbacks(self) -> list[Callback]:
        return [EMA(self.momentum, when="before_forward"), CommitMemory()]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        transform: Any = getattr(getattr(self.trainer, "datamodule", None), "transform", None)
        views = getattr(transform, "views", ())
        if isinstance(views, Sequence) and any(view is views[0] for view in views[1:]):
            raise ValueError(
                "the first view of ReSSL must be weaker than the others, got views that are made "
                "alike; use sslzoo.transforms.ressl_views"
            )

    def embed(self, view: Tensor) -> Tensor:
        """L2-normalized projections of the student. (B, C, H, W) -> (B, D)."""
        return l2_normalize(self.projector(self.backbone(view)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        weak, *strong = batch.views
        queries = torch.stack([self.embed(crop) for crop in strong])  # (V, B, D)
        keys, temperatures = self.keys(weak), (self.student_temperature, self.teacher_temperature)
        loss = relational(queries, keys, self.queue.read(), *temperatures)
        self.queue.stage(keys)
        return {"relational": loss}

    @torch.no_grad()
    def keys(self, view: Tensor) -> Tensor:
        """L2-normalized keys of the teacher, with batch norm over shuffled groups. -> (B, D)."""

        def encode(rows: Tensor) -> tuple[Tensor]:
            return (l2_normalize(self.teacher_projector(self.teacher_backbone(rows))),)

        if not self.shuffle:
            return encode(view)[0]
        return encode_shuffled(encode, view, step_permutation(self, "keys", view.device))[0]
