"""VICReg: variance, invariance and covariance of two views' embeddings.

Bardes, Ponce and LeCun, ICLR 2022, https://arxiv.org/abs/2105.04906, equations 1 to 6.
Reference code: facebookresearch/vicreg, main_vicreg.py.

Deviations: none from the code. The paper sums the variance terms of the two views; the code, and
    ours, average them.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sslzoo.checks import check_same_shape
from sslzoo.distributed import Rows, global_sum, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.cross_products import off_diagonal_square

EPS = 1e-4  # added to the variance, as in the code


class VICRegTerms(NamedTuple):
    """The three unweighted terms, whose mean over ranks is that of the global batch."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg(z1: Tensor, z2: Tensor) -> VICRegTerms:
    """The terms of VICReg, with statistics of the global batch.

    invariance: mean of (z1 - z2)^2 over all N D entries. variance: mean over columns and views of
    max(0, 1 - sqrt(var + 1e-4)). covariance: sum of the squared covariances of different columns,
    divided by D and summed over the views. Variance and covariance divide by N - 1.

    Args:
        z1: (n, D) embeddings of the first views.
        z2: (n, D) embeddings of the second views, row i the positive of z1's row i.

    Raises:
        ValueError: for other shapes, or fewer than two rows in the global batch.
    """
    check_same_shape("z1 and z2", z1, z2)
    rows = check_rows(len(z1))
    with no_autocast(z1):
        z1, z2 = at_least_float32(z1), at_least_float32(z2)
        (v1, c1), (v2, c2) = variance_and_covariance(z1, rows), variance_and_covariance(z2, rows)
        invariance = (z1 - z2).square().sum() * (world_size() / (rows.total * z1.shape[1]))
        return VICRegTerms(invariance, (v1 + v2) / 2, c1 + c2)


def check_rows(n: int) -> Rows:
    """The layout of a global batch that is large enough for a variance.

    Args:
        n: number of rows on this rank.

    Raises:
        ValueError: it has fewer than two rows.
    """
    rows = row_layout(n)
    if rows.total < 2:
        raise ValueError(
            f"the global batch must have at least 2 samples (for a variance), got {rows.total}"
        )
    return rows


def variance_and_covariance(z: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """The variance and the covariance term of one view's embeddings (n, D), float32 at least."""
    z = z - global_sum(z.sum(dim=0)) / rows.total
    variance = global_sum(z.square().sum(dim=0)) / (rows.total - 1)  # (D,)
    hinge = (1 - (variance + EPS).sqrt()).relu().mean()
    covariance = off_diagonal_square(z, z, rows) / (rows.total - 1) ** 2
    return hinge, covariance / z.shape[1]
