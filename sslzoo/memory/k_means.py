"""Spherical k-means over the rows of all ranks: k-means with cosine similarity.

Reference code: facebookresearch/swav at 06b1b7c, main_deepclusterv2.py, cluster_memory.

Deviations: none.

Shapes: n local rows, D width, K centroids.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.distributed import sum_over_ranks

_COSINES_BLOCK = 1 << 24  # cosines per block


@torch.no_grad()
def spherical_k_means(rows: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Run k-means; return the centroids, and the cluster of each row.

    An empty cluster keeps its centroid. Every rank calls it and gets the same centroids.

    Args:
        rows: (n, D) of this rank, L2-normalized; n may differ between ranks and may be 0.
        centroids: (K, D) initial centroids, the same on every rank.
        iterations: updates of the centroids; 10 in the code.

    Returns:
        (K, D) L2-normalized centroids in float32 at least, and (n,) int64 clusters.
    """
    centroids = centroids.to(torch.promote_types(centroids.dtype, torch.float32))
    for _ in range(iterations):
        sums = centroids.new_zeros(len(centroids), centroids.shape[1] + 1)  # last column: counts
        for block in _blocks(rows, centroids):
            nearest = (block @ centroids.T).argmax(dim=1)
            sums.index_add_(0, nearest, F.pad(block, (0, 1), value=1.0))
        sums, counts = sum_over_ranks(sums).split([centroids.shape[1], 1], dim=1)
        centroids = F.normalize(torch.where(counts > 0, sums / counts, centroids), dim=1)
    own = [(block @ centroids.T).argmax(dim=1) for block in _blocks(rows, centroids)]
    return centroids, torch.cat(own)


def _blocks(rows: Tensor, centroids: Tensor) -> Iterator[Tensor]:
    """Blocks of the rows in the centroids' type; one empty block if there are no rows."""
    for block in rows.split(max(1, _COSINES_BLOCK // len(centroids))):
        yield block.to(centroids.dtype)
