"""Cluster memory: last embeddings of all training samples, and their clusters.

Caron et al., NeurIPS 2020, https://arxiv.org/abs/2006.09882, appendix (DeepCluster-v2).
Reference code: facebookresearch/swav at 06b1b7c, main_deepclusterv2.py.

Deviations:
    layout: one row per sample, the same on every rank, and each rank does its share of k-means; in
        the reference code each rank keeps the rows that it saw.
    samples that an epoch omits: keep their row of an earlier epoch; the reference code assigns
        them to no cluster.
    initial centroids: keyed draws among all rows; the reference code draws among rank 0's.

Shapes: M samples, A crops, D width, H clusterings, K_h clusters of clustering h.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslzoo.distributed import gather_rows, rank, world_size
from sslzoo.memory.base import Memory, last_of_each
from sslzoo.memory.k_means import spherical_k_means
from sslzoo.random import run_keys

UNASSIGNED = -100  # cluster of a sample that has not been seen yet


class ClusterMemory(Memory):
    """Last embeddings (M, A, D) of each sample's crops, and H clusterings of them.

    Clustering h clusters the rows of crop h mod A. Rows are zeros until their sample has been seen;
    then they are in no cluster.

    Args:
        size: M, the number of training samples.
        dim: D; 128 in the paper.
        num_clusters: K_h of each clustering; three times 3000 in the paper.
        num_crops: A; 2 in the paper.
        dtype: type of the rows; bfloat16 halves the memory.

    Attributes:
        assignments: (M, H) int64, -100 for no cluster.
        epoch: () int64, the epoch of the assignments; -1 before the first.

    Raises:
        ValueError: for a size, width or number below 1.
    """

    rows: Tensor
    assignments: Tensor
    epoch: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        num_clusters: Sequence[int],
        num_crops: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if min(size, dim, num_crops, len(num_clusters), *num_clusters) < 1:
            raise ValueError(
                "size, num_crops, dim and all num_clusters must be at least 1, got "
                f"({size}, {num_crops}, {dim}) and clusters {list(num_clusters)}"
            )
        self.num_clusters = list(num_clusters)
        self.register_buffer("rows", torch.zeros(size, num_crops, dim, dtype=dtype))
        self.register_buffer("assignments", torch.full((size, len(num_clusters)), UNASSIGNED))
        self.register_buffer("epoch", torch.tensor(-1))
        for h, k in enumerate(num_clusters):
            self.register_buffer(f"centroids_{h}", torch.zeros(k, dim))

    @property
    def centroids(self) -> list[Tensor]:
        """Centroids (K_h, D) of each clustering, L2-normalized; zeros before the first epoch."""
        return [getattr(self, f"centroids_{h}") for h in range(len(self.num_clusters))]

    def stage(self, index: Tensor, values: Tensor) -> None:
        """Stage a micro-batch's embeddings for the next commit.

        Args:
            index: (n,) int64, the samples.
            values: (n, A, D) L2-normalized embeddings; detached here.

        Raises:
            ValueError: for other shapes.
        """
        expected = (len(index), *self.rows.shape[1:])
        if index.dim() != 1 or values.shape != expected:
            got = f"{tuple(index.shape)} and {tuple(values.shape)}"
            raise ValueError(f"index must be (n,) and values {expected}, got {got}")
        self._append(index, values)

    def _write(self, *columns: Tensor) -> None:
        index, values = columns
        self.rows[index] = values[last_of_each(index)].to(self.rows.dtype)

    @torch.no_grad()
    def cluster(self, epoch: int, seed: int, iterations: int = 10) -> None:
        """Recompute all clusterings, of the samples seen so far; every rank calls it.

        Args:
            epoch: the epoch that will use them.
            seed: with the epoch, determines the initial centroids.
            iterations: iterations of k-means; 10 in the code.

        Raises:
            ValueError: if fewer samples have been seen than there are clusters.
        """
        known = self.rows[:, 0].any(dim=1).nonzero().squeeze(1)
        if len(known) < max(self.num_clusters):
            raise ValueError(
                f"num_prototypes must be at most {len(known)}, the number of samples seen, got "
                f"{max(self.num_clusters)}"
            )
        mine = known.tensor_split(world_size())[rank()]
        self.assignments.fill_(UNASSIGNED)
        for h, centroids in enumerate(self.centroids):
            crop = h % self.rows.shape[1]
            first = known[self.first_samples(h, len(known), epoch, seed)]
            found, own = spherical_k_means(
                self.rows[mine, crop], self.rows[first, crop], iterations
            )
            centroids.copy_(found)
            self.assignments[known, h] = gather_rows(own)
        self.epoch.fill_(epoch)

    def first_samples(self, h: int, n: int, epoch: int, seed: int) -> Tensor:
        """Positions of the initial centroids of clustering h among n samples. (K_h,) int64."""
        keys = run_keys(seed, "k-means", epoch, h, device=self.rows.device)
        return keys.permutation("first centroids", n)[0, : self.num_clusters[h]]

    def extra_repr(self) -> str:
        size, num_crops, dim = self.rows.shape
        return f"size={size}, num_crops={num_crops}, dim={dim}, num_clusters={self.num_clusters}"
