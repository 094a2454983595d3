"""Cluster cross entropy: every crop predicts the clusters assigned to its sample.

Caron et al., NeurIPS 2020, https://arxiv.org/abs/2006.09882, appendix (DeepCluster-v2).
Reference code: facebookresearch/swav at 06b1b7c, main_deepclusterv2.py, train.

Deviations:
    batch without any assigned sample: the loss is 0; in the reference code it is NaN.

Shapes: B local samples, V crops, D width, H clusterings, K_h clusters of clustering h. The
logits of one crop and one clustering exist at a time: the gradient is formed with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslzoo.checks import check_positive, shapes
from sslzoo.distributed import sum_over_ranks, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import RowBlocks


def cluster_cross_entropy(
    z: Tensor, centroids: Sequence[Tensor], labels: Tensor, temperature: float
) -> Tensor:
    """Mean cross entropy over assigned samples, their crops, and the clusterings.

    Args:
        z: (B, V, D) embeddings, L2-normalized by the caller.
        centroids: (K_h, D) of each clustering, L2-normalized by the caller; constants.
        labels: (B, H) int64, each sample's cluster; -100 for a sample without one.
        temperature: divides the scores; 0.1 in the code.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    if z.dim() != 3 or any(c.dim() != 2 or c.shape[1] != z.shape[2] for c in centroids):
        got = shapes(z, *centroids)
        raise ValueError(f"z must be (B, V, D) and each of the centroids (K, D), got {got}")
    expected = (len(z), len(centroids))
    if labels.shape != expected:
        raise ValueError(f"labels must be (B, H) = {expected}, got {tuple(labels.shape)}")
    check_positive("temperature", temperature)
    num_crops = z.shape[1]
    with no_autocast(z):
        z = at_least_float32(z)
        known = (labels >= 0).to(z.dtype)  # (B, H)
        counts = sum_over_ranks(known.sum(dim=0)).clamp(min=1)
        share = known * (world_size() / (counts * num_crops * len(centroids)))
        value = z.new_zeros(())
        for h, keys in enumerate(centroids):
            blocks = RowBlocks(z.flatten(0, 1), keys.detach().to(z.dtype))
            own, scale = labels[:, h, None].clamp(min=0), share[:, h, None]  # (B, 1)
            for crop in range(num_crops):
                rows = slice(crop, None, num_crops)
                logits = blocks.dots(rows).div_(temperature)
                norm = logits.logsumexp(dim=1, keepdim=True)
                value = value + (scale * (norm - logits.gather(1, own))).sum()
                slope = logits.sub_(norm).exp_().scatter_add_(1, own, -torch.ones_like(scale))
                blocks.add_slope(rows, slope.mul_(scale / temperature))
            value = blocks.total(value)
        return value
