"""SwAV: swapping assignments between views, with multi-crop.

Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, "Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments", NeurIPS 2020, https://arxiv.org/abs/2006.09882.
Reference code: facebookresearch/swav at 06b1b7c, main_swav.py.

Deviations:
    1. Sinkhorn computes with logarithms, in float32 at least; the code exponentiates the scores,
       which overflows above 88 epsilon, in float16 above 11 epsilon.
    2. One queue of any size serves all ranks, and is updated after the optimizer step with all
       micro-batches; the code keeps queue_size / W rows on each of W GPUs, a multiple of the batch,
       and updates them in the forward pass. Sinkhorn uses the same rows.
    3. Batch norm over groups of 8 GPUs (512 samples with batch size 4096) is `bn_groups` of
       backbone and projector, for any number of GPUs. Running statistics average over groups; the
       code saves those of rank 0's group.
    4. The Linear before the head's batch norm has no bias in our configs; the code's has one, which
       the norm removes. LARC would turn its gradient, rounding noise, into steps.
    5. Scores of the predictions are float32 at least; the code's are float16 (apex O1).
    6. Half precision is bfloat16 in our recipes, float16 (apex O1) in the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.backbones import multi_crop
from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.freeze import FreezeHead
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.distributed import rank, world_size
from sslzoo.layers.precision import l2_normalize, no_autocast
from sslzoo.losses import sinkhorn, swapped_prediction
from sslzoo.memory import Queue
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, all_alike
from sslzoo.sharding import is_sharded, local


class SwAV(SSLMethod):
    """Predict the cluster assignments of an image's large crops from its other crops.

    Args:
        backbone: (B, C, S, S) -> (B, num_features), for every size S of the views.
        projector: num_features -> D: Linear-BN-ReLU-Linear of width 2048 to 128 in the paper.
        num_prototypes: K; 3000 in the paper.
        crops_for_assign: positions of the views whose assignments are predicted; the two large
            crops in the paper.
        temperature: tau of the predictions; 0.1 in the paper.
        epsilon: weight of Sinkhorn's entropy; 0.05 in the paper.
        sinkhorn_iterations: iterations of Sinkhorn; 3 in the paper.
        queue_size: number of earlier samples that Sinkhorn adds to the batch; 0 (none) with batch
            size 4096, 3840 with 256 in the code.
        queue_from_epoch: epoch from which the queue is filled; it is used once full; 15 in the
            code.
        freeze_prototypes_steps: optimizer steps during which the prototypes are only normalized:
            313 with batch size 4096, 5005 (one epoch) with 256 in the code.
        optimizer: see `SSLMethod`; LARC in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine in the paper.
        parameter_groups: see `SSLMethod`; all parameters are decayed and adapted in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> method = SwAV(
        ...     SmallResNet((8, 16)),
        ...     MLP([16, 32, 8], bias=False),
        ...     num_prototypes=6,
        ...     queue_size=20,
        ...     queue_from_epoch=0,
        ...     freeze_prototypes_steps=2,
        ... )
        >>> views = [torch.rand(4, 3, size, size) for size in (8, 8, 6)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['swapped_prediction']
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        num_prototypes: int = 3000,
        crops_for_assign: Sequence[int] = (0, 1),
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        queue_size: int = 0,
        queue_from_epoch: float = 15,
        freeze_prototypes_steps: int = 313,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        dim = output_dim(backbone, projector)
        self.projector = projector
        self.prototypes = nn.Linear(dim, num_prototypes, bias=False)
        self.assigned = tuple(crops_for_assign)
        self.takes = ViewSpec(max(2, 1 + max(self.assigned)))
        width = len(self.assigned) * dim  # a row has all assigned crops of a sample
        self.queue = Queue(queue_size, width, empty=True) if queue_size else None
        self.temperature, self.queue_from_epoch = temperature, queue_from_epoch
        self.epsilon, self.sinkhorn_iterations = epsilon, sinkhorn_iterations
        self.freeze_prototypes_steps = freeze_prototypes_steps

    def configure_callbacks(self) -> list[Callback]:
        return [CommitMemory(), FreezeHead("prototypes", steps=self.freeze_prototypes_steps)]

    def embed_crops(self, views: Sequence[Tensor]) -> Tensor:
        """L2-normalized embeddings of V views. V times (B, C, S, S) -> (B, V, D)."""
        return l2_normalize(multi_crop(self.backbone, self.projector, views))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if is_sharded(self):  # what changes while they are gathered is lost
            self.normalize_prototypes()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if not is_sharded(self):
            self.normalize_prototypes()
        z = self.embed_crops(batch.views)  # (B, V, D)
        targets = torch.stack([z[:, crop].detach() for crop in self.assigned])  # (A, B, D)
        q = self.assign(targets)  # (A, B, K)
        if self.queue is not None and self.queue_has_begun:
            self.queue.stage(targets.transpose(0, 1).flatten(1))
        c, T = self.prototypes.weight, self.temperature
        return {"swapped_prediction": swapped_prediction(z, c, q, self.assigned, T)}

    def assignments(self, view: Tensor) -> Tensor:
        """Predictions, for `OnlinePrototypes`. (B, C, S, S) -> (B, K)."""
        z, c = self.embed_crops([view])[:, 0], F.normalize(self.prototypes.weight, dim=1)
        with no_autocast(z):
            return (z @ c.T.to(z.dtype) / self.temperature).softmax(dim=-1)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Normalize the prototypes in place, before each forward pass."""
        prototypes = local(self.prototypes.weight)
        prototypes.copy_(F.normalize(prototypes, dim=1))

    @property
    def queue_has_begun(self) -> bool:
        return self.step >= self.run_length.steps(self.queue_from_epoch)

    @torch.no_grad()
    def assign(self, z: Tensor) -> Tensor:
        """Sinkhorn's assignments over the batch and a full queue. (A, B, D) -> (A, B, K)."""
        num_crops, num_samples, _ = z.shape
        weight = None
        if self.queue is not None and self.queue_has_begun:
            rows = self.queue.read()[rank() :: world_size()]  # this rank's share
            z = torch.cat([rows.unflatten(1, (num_crops, -1)).transpose(0, 1), z], dim=1)
            weights = [self.queue.full.expand(len(rows)), rows.new_ones(num_samples)]
            weight = torch.cat([part.to(rows.dtype) for part in weights])
        with no_autocast(z):
            scores = z @ self.prototypes.weight.T.to(z.dtype)
        q = sinkhorn(scores, self.epsilon, self.sinkhorn_iterations, weight)
        return q[:, -num_samples:]
