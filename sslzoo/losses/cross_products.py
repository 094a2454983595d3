"""Sum of the squared off-diagonal entries of X^T Y, without the D x D matrix.

Barlow Twins and VICReg need it at D = 8192, where the matrix takes 256 MiB. It is formed one block
at a time and summed over ranks, and its gradient with it. Where 2N <= D, an identity saves more:
the squares of ALL entries of X^T Y sum to the dot product of X X^T and Y Y^T, which are N x N. Then
the rows are gathered, blocks of the N x N products are formed, and the squares of the diagonal are
subtracted. (X^T Y has rank N at most, so that with columns of similar size at least half of the sum
is off the diagonal: the subtraction loses no digits.)

Shapes: n rows of this rank, N of all ranks, D columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.distributed import (
    Rows,
    gather_rows,
    global_sum,
    row_layout,
    sum_over_ranks,
    world_size,
)
from sslzoo.losses.blockwise import RowBlocks


def off_diagonal_square(x: Tensor, y: Tensor, rows: Rows | None = None) -> Tensor:
    """Sum over a != b of (sum over all ranks' rows i of x_ia y_ib)^2.

    Args:
        x: (n, D), in float32 at least.
        y: (n, D); the same tensor as x halves the cost.
        rows: from `row_layout(n)`, to exchange the counts once for several calls.

    Returns:
        Scalar, the same on every rank; its backward sums over ranks, as `global_sum`'s.
    """
    rows = rows or row_layout(len(x))
    return _by_rows(x, y, rows) if 2 * rows.total <= x.shape[1] else _by_columns(x, y)


def _by_columns(x: Tensor, y: Tensor) -> Tensor:
    """The sum from blocks of X^T Y, each summed over ranks."""
    blocks = RowBlocks(x.T, x.T.detach() if y is x else y.T)
    slope = (4 if y is x else 2) * world_size()  # for the 1 / W below
    value = x.new_zeros(())
    for part in blocks.slices:
        products = sum_over_ranks(blocks.dots(part))  # (b, D)
        products.diagonal(part.start).zero_()
        value = value + torch.linalg.vector_norm(products, dim=1).square().sum()
        blocks.add_slope(part, products.mul_(slope))
    # Every rank has the whole value and the gradient by its own rows: divided by W, both count
    # once in the sum over ranks.
    return global_sum(blocks.total(value) / world_size())


def _by_rows(x: Tensor, y: Tensor, rows: Rows) -> Tensor:
    """The sum from blocks of X X^T and Y Y^T, own rows against all."""
    of_x = RowBlocks(x, gather_rows(x, rows))
    of_y = of_x if y is x else RowBlocks(y, gather_rows(y, rows))
    value = x.new_zeros(())
    for part in of_x.slices:
        a = of_x.dots(part)  # (b, N)
        b = a if y is x else of_y.dots(part)
        value = value + torch.linalg.vecdot(a, b).sum()
        of_x.add_slope(part, (4 if y is x else 2) * b)
        if y is not x:
            of_y.add_slope(part, 2 * a)
    value = of_x.total(value)
    value = value if y is x else of_y.total(value)
    return global_sum(value) - global_sum((x * y).sum(dim=0)).square().sum()
