"""Retrieval against scikit-learn, by hand, and on several ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from sslzoo.eval.retrieval import Retrieval, retrieval
from tests.ranks import Ranks


def make(n: int, seed: int, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(num_classes, (n,), generator=generator)
    center = torch.randn(num_classes, 6, generator=torch.Generator().manual_seed(99))
    return center[label] + 2 * torch.randn(n, 6, generator=generator), label


def test_equals_scikit_learn() -> None:
    (query, truth), (bank, labels) = make(70, 0), make(150, 1)
    got = retrieval(query, truth, bank, labels, ks=(1, 3, 200))
    s = (
        torch.nn.functional.normalize(query.double())
        @ torch.nn.functional.normalize(bank.double()).T
    )
    relevant = (truth[:, None] == labels).numpy()
    wanted = [average_precision_score(r, row) for r, row in zip(relevant, s.numpy(), strict=True)]
    assert got.mean_average_precision == pytest.approx(np.mean(wanted), rel=1e-9)
    nearest = s.argsort(1, descending=True)
    for k in (1, 3):
        hits = (labels[nearest[:, :k]] == truth[:, None]).any(1).double().mean().item()
        assert got.recall[k] == pytest.approx(hits)
    assert got.recall[200] == 1.0
    assert got.purity == got.recall[1]
    assert got.num_queries == 70


def test_worked_by_hand() -> None:
    # From (1, 0) the others lie at 10, 20 and 30 degrees: wrong, right, right.
    # Average precision (1/2 + 2/3) / 2 for the first; the lone sample of class 1 does not count.
    angle = torch.tensor([0.0, 10.0, 20.0, 30.0]).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], 1)
    label = torch.tensor([0, 1, 0, 0])
    got = retrieval(x, label, ks=(1, 2))
    # At 20: neighbors at 10 (wrong; 30 is as near in angle, the first in order wins), 30, 0.
    # At 30: 20 right, 10 wrong, 0 right.
    assert got.num_queries == 3
    assert got.recall[2] == 1.0
    third = (1 + 2 / 3) / 2
    second = [(1 / 2 + 2 / 3) / 2, (1 + 2 / 3) / 2]  # 10 and 30 may round either way
    wanted = [((1 / 2 + 2 / 3) / 2 + third + value) / 3 for value in second]
    assert any(got.mean_average_precision == pytest.approx(value) for value in wanted)


def on_rank(rank: int, cut: int) -> Retrieval:
    x, y = make(41, 2)
    own = slice(0, cut) if rank == 0 else slice(cut, None)
    return retrieval(x[own], y[own])


@pytest.mark.parametrize("cut", [0, 7, 20])
def test_ranks_equal_one(cut: int, ranks: Ranks) -> None:
    x, y = make(41, 2)
    one = retrieval(x, y)
    for got in ranks(2, on_rank, cut):
        assert got.mean_average_precision == pytest.approx(one.mean_average_precision, rel=1e-12)
        assert got._replace(mean_average_precision=0) == one._replace(mean_average_precision=0)


def tied(rank: int, world: int) -> Retrieval:
    """Every similarity equal; rank r has the batches r, r + W, ... of sorted classes."""
    index = torch.cat([torch.arange(s, s + 5) for s in range(5 * rank, 40, 5 * world)])
    return retrieval(torch.ones(len(index), 3), index // 10, index=index)


def test_ties_go_by_index_on_any_number_of_ranks(ranks: Ranks) -> None:
    one = tied(0, 1)
    for got in ranks(2, tied, 2):
        assert got.mean_average_precision == pytest.approx(one.mean_average_precision, rel=1e-12)
        assert got.recall == one.recall


def test_errors_name_what_they_got() -> None:
    x, y = make(5, 0)
    with pytest.raises(ValueError, match=r"at least 1, got \[0\]"):
        retrieval(x, y, ks=[0])
    with pytest.raises(ValueError, match=r"got \(5, 6\) and \(4,\)"):
        retrieval(x, y[:4])
    with pytest.raises(ValueError, match="given together"):
        retrieval(x, y, x)
    with pytest.raises(ValueError, match="another sample of its class"):
        retrieval(x, torch.arange(5))
