"""The sum of squared cross products is the matrix's own, by either path, on any ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslzoo.distributed import row_layout
from sslzoo.losses import blockwise
from sslzoo.losses.cross_products import _by_columns, _by_rows, off_diagonal_square
from tests.losses.parity import COUNTS, Largest, assert_ranks_equal_one, value_and_gradients
from tests.ranks import Ranks

WIDE, NARROW = 14, 4  # of six rows: by rows (2N <= D), by columns


def reference(x: Tensor, y: Tensor) -> Tensor:
    """Entry by entry."""
    total = torch.zeros((), dtype=torch.float64)
    for a in range(x.shape[1]):
        for b in range(x.shape[1]):
            if a != b:
                total = total + (x[:, a].double() @ y[:, b].double()) ** 2
    return total


def itself(x: Tensor) -> Tensor:
    return off_diagonal_square(x, x)


def _pair(dim: int, n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(dim)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("limit", [1 << 20, 30])
@pytest.mark.parametrize("dim", [WIDE, NARROW])
def test_value_and_gradients_are_the_references(
    monkeypatch: pytest.MonkeyPatch, dim: int, limit: int
) -> None:
    monkeypatch.setitem(blockwise._BLOCK, "cpu", limit)
    x, y = _pair(dim)
    got = value_and_gradients(off_diagonal_square, [x, y], 2)
    torch.testing.assert_close(got, value_and_gradients(reference, [x, y], 2))
    got = value_and_gradients(itself, [x], 1)
    torch.testing.assert_close(got, value_and_gradients(lambda x: reference(x, x), [x], 1))


def test_hand_worked_value() -> None:
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])  # x^T y = [[3, 5], [6, 10]]
    assert off_diagonal_square(x, y).item() == 5**2 + 6**2


def test_both_paths_agree() -> None:
    for dim in (WIDE, NARROW):
        x, y = _pair(dim)
        by_rows = value_and_gradients(lambda x, y: _by_rows(x, y, row_layout(len(x))), [x, y], 2)
        torch.testing.assert_close(value_and_gradients(_by_columns, [x, y], 2), by_rows)


@pytest.mark.parametrize("dim", [WIDE, NARROW])
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], dim: int) -> None:
    assert_ranks_equal_one(ranks, off_diagonal_square, _pair(dim), 2, counts)
    assert_ranks_equal_one(ranks, itself, _pair(dim)[:1], 1, counts)


def test_the_matrix_never_exists_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blockwise._BLOCK, "cpu", 64 * 16)
    with Largest() as wide:
        value_and_gradients(off_diagonal_square, _pair(64, 16), 2)
    with Largest() as narrow:
        value_and_gradients(off_diagonal_square, _pair(64, 40), 2)
    assert wide.numel == 64 * 16
    assert narrow.numel == 64 * 40  # the inputs; 64 * 64 would be the matrix
