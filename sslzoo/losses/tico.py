"""TiCo: transformation invariance and covariance contrast.

Zhu, Moraes, Karakulak, Sobol, Canziani and LeCun, 2022, https://arxiv.org/abs/2206.10698.
Reference code: none by the authors. sayannag/TiCo-pytorch at 2259b83, TiCo/main.py, and
lightly-ai/lightly at e8d317f, lightly/loss/tico_loss.py, which differ from each other.

Deviations:
    gradient: flows through the batch's share of C_t, as in sayannag's code; lightly's code takes
        all of C_t as a constant (here: beta = 1 and a covariance that is updated already).
    constant: none, as in sayannag's code; lightly's adds 1 to the invariance.
    ranks: B is that of the global batch; sayannag's code has no ranks.

Shapes: n local and N global rows, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sslzoo.checks import check_same_shape, shapes
from sslzoo.distributed import global_sum, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast


class TiCoTerms(NamedTuple):
    """The two terms, unweighted, and B, with which the caller updates its C.

    The mean over ranks of `invariance` and of `contrast` is that of the global batch. B, (D, D), is
    z1^T z1 / N of the global batch, the same on every rank.
    """

    invariance: Tensor
    contrast: Tensor
    second_moment: Tensor


def tico(z1: Tensor, z2: Tensor, covariance: Tensor, beta: float = 0.9) -> TiCoTerms:
    """The terms of TiCo, with statistics of the global batch.

    With B = z1^T z1 / N and C_t = beta C_{t-1} + (1 - beta) B, invariance: mean of -<z1, z2>;
    contrast: mean of z1^T C_t z1 = <B, C_t>. The loss is invariance + rho * contrast.

    Args:
        z1: (n, D) L2-normalized projections of the online network.
        z2: (n, D) L2-normalized projections of the momentum network, row i the positive of z1's
            row i; detached by the caller.
        covariance: (D, D) C_{t-1}, zero before the first step; detached by the caller.
        beta: weight of C_{t-1} in C_t; 0.9 in the paper.

    Raises:
        ValueError: for other shapes, or a beta outside [0, 1].

    Example:
        >>> import torch
        >>> z = torch.eye(2)
        >>> terms = tico(z, z, covariance=torch.ones(2, 2), beta=0.5)
        >>> terms.invariance.item(), terms.contrast.item()  # B = I / 2, C_t = 1 / 2 + I / 4
        (-1.0, 0.75)
    """
    check_same_shape("z1 and z2", z1, z2)
    if covariance.shape != (z1.shape[1], z1.shape[1]):
        raise ValueError(f"covariance must be (D, D) for z1 (n, D), got {shapes(covariance, z1)}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta}")
    with no_autocast(z1):
        z1, z2 = at_least_float32(z1), at_least_float32(z2)
        total = row_layout(len(z1)).total
        B = global_sum(z1.T @ z1) / total  # (D, D)
        C = beta * covariance + (1 - beta) * B
        invariance = -(z1 * z2).sum() * (world_size() / total)
        return TiCoTerms(invariance, (B * C).sum(), B)
