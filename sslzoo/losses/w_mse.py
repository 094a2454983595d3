"""W-MSE: squared distances of views whose embeddings are whitened in sub-batches.

Ermolov, Siarohin, Sangineto and Sebe, Whitening for Self-Supervised Representation Learning, ICML
2021, https://arxiv.org/abs/2007.06346.
Reference code: htdt/self-supervised at d9662c8, methods/w_mse.py, whitening.py and norm_mse.py.

Deviations:
    ranks: the sub-batches are drawn from the global batch; the code has one process.
    singular covariance: the result is not a number, without a host synchronization; the code's
        Cholesky decomposition raises an error.

Shapes: n local and N global rows, V views, D width, I iterations, w rows per sub-batch.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from sslzoo.checks import check_interval, check_whole, shapes
from sslzoo.distributed import gather, rank, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, l2_normalize, no_autocast


def whiten(x: Tensor, eps: float = 0.0) -> Tensor:
    """Subtract the mean, and multiply by the inverse Cholesky factor of the covariance.

    With L L^T = (1 - eps) cov + eps I and L lower triangular, each row becomes L^-1 (x - mean).
    The gradient flows through mean and covariance, which divides by w - 1.

    Args:
        x: (..., w, D), each of the leading entries by itself, in float32 at least.
        eps: weight of the identity; 0 in the code.

    Returns:
        (..., w, D); not a number where the covariance is singular.

    Raises:
        ValueError: for w <= D with eps 0, where the covariance is singular, or for a single row.

    Example:
        >>> import torch
        >>> whiten(torch.tensor([[0.0], [0.0], [6.0]])).flatten()  # mean 2, variance 12
        tensor([-0.5774, -0.5774,  1.1547])
    """
    check_interval("eps", eps, 0, 1, "[)")
    check_sub_batch(x.shape[-2], x.shape[-1], eps)
    with no_autocast(x):
        x = x - x.mean(dim=-2, keepdim=True)
        covariance = x.mT @ x / (x.shape[-2] - 1)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        L, failed = torch.linalg.cholesky_ex((1 - eps) * covariance + eps * identity)
        L = L.masked_fill(failed.bool()[..., None, None], torch.nan)
        return torch.linalg.solve_triangular(L, x.mT, upper=False).mT


def check_sub_batch(size: int, dim: int, eps: float) -> None:
    """Refuse a number of rows whose covariance cannot be inverted.

    Raises:
        ValueError: names the size, and what it must be.
    """
    check_whole("sub_batch_size", size, 0)
    if size < 2:
        raise ValueError(f"sub_batch_size must be at least 2, for a covariance, got {size}")
    if size <= dim and eps == 0:
        raise ValueError(
            f"sub_batch_size must be above {dim}, the dimensions of the projections, since fewer "
            f"samples have a singular covariance (or set eps above 0), got {size}"
        )


def w_mse(
    z: Tensor, permutations: Tensor, sub_batch_size: int, eps: float = 0.0, normalize: bool = True
) -> Tensor:
    """Mean squared distance of a sample's whitened views, over pairs of views and iterations.

    Each permutation cuts the global batch into sub-batches, the same for all views; in each, every
    view is whitened by its own statistics.

    Args:
        z: (n, V, D) embeddings.
        permutations: (I, N) int64 of the global batch, the same on every rank.
        sub_batch_size: w, which must divide N; 2 D in the paper.
        eps: see `whiten`.
        normalize: whether the distance is 2 - 2 cos; otherwise it is the mean over N and D of the
            squared difference (the code's --no_norm).

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, fewer than two views, a w that does not divide N, or one that
            is too small for D.
    """
    rows = row_layout(len(z))
    if z.dim() != 3 or z.shape[1] < 2 or permutations.shape[1:] != (rows.total,):
        raise ValueError(
            "z and permutations must be (n, V, D), with at least two views, and (I, N), got "
            f"{shapes(z, permutations)}"
        )
    if rows.total % sub_batch_size:
        raise ValueError(
            f"the global batch must be a multiple of sub_batch_size {sub_batch_size}, got "
            f"{rows.total}; drop_last=True of a DataLoader drops a smaller last batch"
        )
    with no_autocast(z):
        whole = gather(at_least_float32(z), rows)  # (N, V, D)
        groups = permutations.unflatten(1, (-1, sub_batch_size)).flatten(0, 1)  # (I N / w, w)
        mine = groups[rank() :: world_size()]  # the ranks share the work
        white = whiten(whole[mine].transpose(1, 2), eps)  # (groups, V, w, D)
        white = l2_normalize(white) if normalize else white
        pairs = list(combinations(white.unbind(dim=1), 2))
        total = torch.stack([(a - b).square().sum() for a, b in pairs]).mean()
        scale = world_size() / permutations.numel()
        return total * (scale if normalize else scale / z.shape[2])
