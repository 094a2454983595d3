"""DeepCluster-v2: naming the clusters of the last epoch's embeddings.

Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, "Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments", NeurIPS 2020, https://arxiv.org/abs/2006.09882, appendix.
Reference code: facebookresearch/swav at 06b1b7c, main_deepclusterv2.py.

Deviations:
    1. Prototypes are buffers; the code keeps parameters whose gradient it drops for 300,000 steps,
       more than its runs have.
    2. The memory has one slot a sample, the same on every rank, and is written after the optimizer
       step; a sample that an epoch left out keeps its row. The code's ranks keep the rows that they
       saw in the last epoch, and a sample left out has no cluster in the next.
    3. K-means begins with keyed draws among all rows, the code's with draws among rank 0's.
    4. A batch without any cluster has the loss 0, in the code not a number.
    5. The pass that fills the memory first sends the assigned crops through the network together,
       the code's one after the other.
    6. Batch norm and the bias before it: as in SwAV, deviations 3 and 4 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.backbones import multi_crop
from sslzoo.batch import Batch, index_of
from sslzoo.callbacks.clusters import ClusterEpochs
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.losses import cluster_cross_entropy
from sslzoo.losses.precision import at_least_float32, no_autocast
from sslzoo.memory import ClusterMemory
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    output_dim,
)
from sslzoo.optim import Schedule, all_alike


class DeepClusterV2(SSLMethod):
    """Every epoch begins with k-means of what the last one saw; crops then name their cluster.

    Args:
        backbone: (B, C, S, S) -> (B, num_features), for every size S of the views.
        projector: num_features -> D: Linear-BN-ReLU-Linear, 2048 wide, to 128 in the paper.
        bank_size: number of training samples; one slot each.
        num_prototypes: K of each clustering; three of 3000 in the paper.
        crops_for_assign: views that are remembered; clustering h is of number h modulo A of them.
            The two large ones in the paper.
        temperature: 0.1 in the paper.
        k_means_iterations: 10 in the code.
        bank_dtype: of the memory's rows; bfloat16 halves the 1.3 GB that ImageNet's takes.
        optimizer: see `SSLMethod`; LARC in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine.
        parameter_groups: see `SSLMethod`; all parameters are decayed and adapted in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> method = DeepClusterV2(
        ...     SmallResNet((8, 16)),
        ...     MLP([16, 32, 8], bias=False),
        ...     bank_size=48,
        ...     num_prototypes=[5, 4, 3],
        ... )
        >>> views = [torch.rand(4, 3, size, size) for size in (8, 8, 6)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['cluster_cross_entropy']
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        bank_size: int,
        num_prototypes: Sequence[int] = (3000, 3000, 3000),
        crops_for_assign: Sequence[int] = (0, 1),
        temperature: float = 0.1,
        k_means_iterations: int = 10,
        bank_dtype: Literal["float32", "bfloat16"] = "float32",
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        dim = output_dim(backbone, projector)
        self.projector = projector
        self.assigned, self.temperature = tuple(crops_for_assign), temperature
        self.k_means_iterations = k_means_iterations
        self.clusters = ClusterMemory(
            bank_size, dim, num_prototypes, len(self.assigned), getattr(torch, bank_dtype)
        )

    def configure_callbacks(self) -> list[Callback]:
        return [CommitMemory(), ClusterEpochs(self.k_means_iterations)]

    def embed_crops(self, views: Sequence[Tensor]) -> Tensor:
        """Normalized embeddings of V views. V times (B, C, S, S) -> (B, V, D)."""
        z = multi_crop(self.backbone, self.projector, views)
        return F.normalize(at_least_float32(z), dim=-1)

    def remember(self, batch: Batch) -> None:
        """Stage embeddings of the assigned crops: what fills the memory before the first epoch."""
        z = self.embed_crops([batch.views[crop] for crop in self.assigned])
        self.clusters.stage(index_of(batch, "DeepClusterV2"), z)

    def assignments(self, view: Tensor) -> Tensor:
        """Predictions of the first clustering, which `OnlinePrototypes` watches.

        (B, C, S, S) -> (B, K_1).
        """
        z, c = self.embed_crops([view])[:, 0], self.clusters.centroids[0]
        with no_autocast(z):
            return (z @ c.T.to(z.dtype) / self.temperature).softmax(dim=-1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        index = index_of(batch, "DeepClusterV2")
        z = self.embed_crops(batch.views)  # (B, V, D)
        labels, c = self.clusters.assignments[index], self.clusters.centroids  # (B, H), (K_h, D)
        self.clusters.stage(index, torch.stack([z[:, crop] for crop in self.assigned], dim=1))
        return {"cluster_cross_entropy": cluster_cross_entropy(z, c, labels, self.temperature)}
