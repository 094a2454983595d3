"""VICReg: variance, invariance and covariance of two views' embeddings.

Bardes, Ponce and LeCun, ICLR 2022, https://arxiv.org/abs/2105.04906, equations 1 to 6.
Reference code: facebookresearch/vicreg, main_vicreg.py.

Deviations: none from the code. The paper sums the two views' hinges; the code, and we, halve them.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sslzoo.distributed import Rows, global_sum, row_layout, world_size
from sslzoo.losses.cross_products import off_diagonal_square
from sslzoo.losses.precision import at_least_float32, no_autocast

_EPS = 1e-4  # added to the variance, the code's


class VICRegTerms(NamedTuple):
    """The three terms, unweighted; the mean over ranks of each is that of the global batch."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg(z1: Tensor, z2: Tensor) -> VICRegTerms:
    """The terms of VICReg, with statistics of the global batch.

    invariance: mean of (z1 - z2)^2 over all N D entries. variance: mean over columns of
    max(0, 1 - sqrt(var + 1e-4)), and over the views. covariance: the squared covariances of
    different columns, summed, over D, and summed over the views. Variance and covariance divide by
    N - 1.

    Args:
        z1: (n, D) embeddings.
        z2: (n, D) of the other views, row i beside z1's row i.

    Raises:
        ValueError: for other shapes, or fewer than two rows in the global batch.
    """
    if z1.dim() != 2 or z1.shape != z2.shape:
        shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ValueError(f"vicreg takes two (n, D) tensors of one shape, got {shapes}")
    rows = row_layout(len(z1))
    if rows.total < 2:
        raise ValueError(f"a variance wants at least 2 rows, got a global batch of {rows.total}")
    with no_autocast(z1):
        z1, z2 = at_least_float32(z1), at_least_float32(z2)
        share = world_size() / (rows.total * z1.shape[1])
        of_z1, of_z2 = _spread(z1, rows), _spread(z2, rows)
        return VICRegTerms(
            (z1 - z2).square().sum() * share,
            (of_z1[0] + of_z2[0]) / 2,
            of_z1[1] + of_z2[1],
        )


def _spread(z: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Hinge of the deviations, and mean square of the covariances, of one view's embeddings."""
    z = z - global_sum(z.sum(dim=0)) / rows.total
    variance = global_sum(z.square().sum(dim=0)) / (rows.total - 1)  # (D,)
    hinge = (1 - (variance + _EPS).sqrt()).relu().mean()
    covariance = off_diagonal_square(z, z, rows) / (rows.total - 1) ** 2
    return hinge, covariance / z.shape[1]
