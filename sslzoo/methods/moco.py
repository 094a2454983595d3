"""MoCo: momentum contrast, versions 1 and 2.

He, Fan, Wu, Xie and Girshick, CVPR 2020, https://arxiv.org/abs/1911.05722; Chen, Fan, Girshick
and He, 2020, https://arxiv.org/abs/2003.04297 (head, views, schedule), is a config of this class.
Reference code: facebookresearch/moco at 78b69ca and its CIFAR-10 notebook (colab-notebook,
f736491).

Deviations:
    1. The shuffle is a keyed permutation of the global batch; the code broadcasts torch.randperm of
       rank 0.
    2. Batch norm "per GPU" is `bn_groups` of backbone and projector, for any number of GPUs. A
       group of the notebook's split batch norm is every eighth sample, ours an eighth of the batch.
    3. Running statistics average over groups, as in the notebook; the code saves those of rank 0.
    4. The queue is updated after the optimizer step, with the keys of all micro-batches of a
       gradient accumulation; the code updates it in the forward pass and has no accumulation.
    5. The queue may have any size; the code requires a multiple of the global batch.
    6. The cosine of the learning rate counts epochs from 0, in the notebook from 1.
"""

from __future__ import annotations

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.layers import encode_shuffled
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import info_nce
from sslzoo.memory import Queue
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    frozen_copy,
    output_dim,
    step_permutation,
)
from sslzoo.optim import Schedule, all_alike, as_schedule


class MoCo(SSLMethod):
    """Contrast queries with the keys of a momentum encoder, whose negatives are in a queue.

    Args:
        backbone: f; (B, C, H, W) -> (B, num_features); its `bn_groups` stands for the number of
            GPUs, 8 in the paper.
        projector: num_features -> D: one Linear to 128 in v1, Linear-ReLU-Linear in v2.
        queue_size: K; 65536 in the paper, 4096 in the CIFAR-10 notebook.
        temperature: tau; 0.07 in v1, 0.2 in v2, 0.1 in the notebook.
        momentum: m of the key encoder at each optimizer step; 0.999 in the paper, 0.99 in the
            notebook.
        shuffle: whether keys are computed on a permutation of the global batch, so that a query
            and its key are in different groups of batch norm; without groups it has no effect.
        symmetric: whether to add the loss with the views exchanged and enqueue the keys of both
            views, as the notebook's option does.
        optimizer: see `SSLMethod`; SGD in the paper.
        schedule: see `SSLMethod`; steps at epochs 120 and 160 in v1, a cosine by epoch in v2.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> method = MoCo(SmallResNet((8, 16), bn_groups=2), nn.Linear(16, 8), queue_size=20)
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
        queue_size: int = 65536,
        temperature: float = 0.07,
        momentum: Schedule | float = 0.999,
        shuffle: bool = True,
        symmetric: bool = False,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        dim = output_dim(backbone, projector)
        self.projector = projector
        self.key_backbone, self.key_projector = frozen_copy(backbone), frozen_copy(projector)
        self.queue = Queue(queue_size, dim)
        self.temperature, self.momentum = temperature, as_schedule(momentum)
        self.shuffle, self.symmetric = shuffle, symmetric

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.backbone, self.key_backbone), (self.projector, self.key_projector)]

    def configure_callbacks(self) -> list[Callback]:
        return [EMA(self.momentum, when="before_forward"), CommitMemory()]

    def embed(self, view: Tensor) -> Tensor:
        """L2-normalized queries, also used by the notebook's kNN. (B, C, H, W) -> (B, D)."""
        return l2_normalize(self.projector(self.backbone(view)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        v1, v2 = batch.views
        negatives, T = self.queue.read(), self.temperature  # (K, D)
        q1, k2 = self.embed(v1), self.keys(v2, "second view")
        loss = info_nce(q1, k2, negatives, T)
        if self.symmetric:
            q2, k1 = self.embed(v2), self.keys(v1, "first view")
            loss = loss + info_nce(q2, k1, negatives, T)
            self.queue.stage(k1)
        self.queue.stage(k2)
        return {"info_nce": loss}

    @torch.no_grad()
    def keys(self, view: Tensor, purpose: str) -> Tensor:
        """L2-normalized keys, with batch norm over shuffled groups. (B, C, H, W) -> (B, D)."""
        if not self.shuffle:
            return self._encode(view)
        order = step_permutation(self, purpose, view.device)
        return encode_shuffled(lambda rows: (self._encode(rows),), view, order)[0]

    def _encode(self, view: Tensor) -> Tensor:
        return l2_normalize(self.key_projector(self.key_backbone(view)))
