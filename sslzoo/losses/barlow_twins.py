"""Barlow Twins: the cross-correlation of two views' embeddings against the identity.

Zbontar, Jing, Misra, LeCun and Deny, ICML 2021, https://arxiv.org/abs/2103.03230, equation 1.
Reference code: facebookresearch/barlowtwins, main.py.

Deviations:
    gradient: that of the global batch. The code's `all_reduce` has no backward pass, so that on W
        GPUs it trains with 1 / W of the gradient: `gradient_scale`.
"""

from __future__ import annotations

from torch import Tensor

from sslzoo.checks import check_same_shape
from sslzoo.distributed import global_sum, row_layout
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.cross_products import off_diagonal_square


def barlow_twins(
    z1: Tensor, z2: Tensor, off_diagonal_weight: float = 0.0051, gradient_scale: float = 1.0
) -> Tensor:
    """Distance of the cross-correlation matrix c = z1^T z2 / N to the identity.

    sum_a (c_aa - 1)^2 + lambda sum_{a != b} c_ab^2.

    Args:
        z1: (n, D) embeddings of the first views, each column of mean 0 and variance 1 over the
            global batch: the output of a batch norm without scale and offset.
        z2: (n, D) embeddings of the second views, normalized in the same way.
        off_diagonal_weight: lambda; 0.0051 in the paper.
        gradient_scale: multiplies the gradient, not the value.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch (the same on every rank).

    Raises:
        ValueError: for other shapes.
    """
    check_same_shape("z1 and z2", z1, z2)
    with no_autocast(z1):
        z1, z2 = at_least_float32(z1), at_least_float32(z2)
        rows = row_layout(len(z1))
        diagonal = global_sum((z1 * z2).sum(dim=0)) / rows.total  # c_aa, (D,)
        redundancy = off_diagonal_square(z1, z2, rows) / rows.total**2
        loss = (diagonal - 1).square().sum() + off_diagonal_weight * redundancy
        if gradient_scale == 1.0:
            return loss
        return loss.detach() + gradient_scale * (loss - loss.detach())
