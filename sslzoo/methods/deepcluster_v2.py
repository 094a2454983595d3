"""DeepCluster-v2: classification into the clusters of the last epoch's embeddings.

Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, "Unsupervised Learning of Visual Features by
Contrasting Cluster Assignments", NeurIPS 2020, https://arxiv.org/abs/2006.09882, appendix.
Reference code: facebookresearch/swav at 06b1b7c, main_deepclusterv2.py.

Deviations:
    1. Prototypes are buffers; in the code they are parameters without gradient for 300,000 steps,
       more than its runs have.
    2. The memory has one row per sample, is the same on every rank, and is updated after the
       optimizer step; a sample that an epoch omits keeps its row. In the code each rank keeps the
       rows that it saw in the last epoch, and an omitted sample has no cluster in the next.
    3. K-means starts from keyed draws among all rows; the code's draws are among rank 0's rows.
    4. The loss of a batch without any assigned sample is 0; in the code it is NaN.
    5. The pass that fills the memory before the first epoch encodes the assigned crops together;
       the code encodes one crop after the other.
    6. Batch norm and the bias before it are as in SwAV, see its deviations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import multi_crop
from sslzoo.batch import Batch, ViewSpec, index_of
from sslzoo.callbacks.clusters import ClusterEpochs
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.layers.precision import l2_normalize, no_autocast
from sslzoo.losses import cluster_cross_entropy
from sslzoo.memory import ClusterMemory
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, all_alike


class DeepClusterV2(SSLMethod):
    """Classify crops into clusters that k-means finds among the last epoch's embeddings.

    Args:
        backbone: (B, C, S, S) -> (B, num_features), for every size S of the views.
        projector: num_features -> D: Linear-BN-ReLU-Linear of width 2048 to 128 in the paper.
        bank_size: number of training samples; the memory has one row per sample.
        num_prototypes: K of each clustering; three times 3000 in the paper.
        crops_for_assign: positions of the A views that are stored and clustered; clustering h uses
            the h mod A-th of them. The two large crops in the paper.
        temperature: tau; 0.1 in the paper.
        k_means_iterations: iterations of k-means; 10 in the code.
        bank_dtype: type of the memory's rows; bfloat16 halves the 1.3 GB of ImageNet's memory.
        optimizer: see `SSLMethod`; LARC in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine in the paper.
        parameter_groups: see `SSLMethod`; all parameters are decayed and adapted in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> method = DeepClusterV2(
        ...     SmallResNet((8, 16)),
        ...     MLP([16, 32, 8], bias=False),
        ...     bank_size=48,
        ...     num_prototypes=[4, 3, 2],
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
        self.takes = ViewSpec(1 + max(self.assigned))
        self.k_means_iterations = k_means_iterations
        self.clusters = ClusterMemory(
            bank_size, dim, num_prototypes, len(self.assigned), getattr(torch, bank_dtype)
        )

    def configure_callbacks(self) -> list[Callback]:
        return [CommitMemory(), ClusterEpochs(self.k_means_iterations)]

    def embed_crops(self, views: Sequence[Tensor]) -> Tensor:
        """L2-normalized embeddings of V views. V times (B, C, S, S) -> (B, V, D)."""
        return l2_normalize(multi_crop(self.backbone, self.projector, views))

    def remember(self, batch: Batch) -> None:
        """Stage embeddings of the assigned crops, to fill the memory before the first epoch."""
        z = self.embed_crops([batch.views[crop] for crop in self.assigned])
        self.clusters.stage(index_of(batch, "DeepClusterV2"), z)

    def assignments(self, view: Tensor) -> Tensor:
        """Predictions of the first clustering, for `OnlinePrototypes`.

        Shapes: (B, C, S, S) -> (B, K_1).
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
