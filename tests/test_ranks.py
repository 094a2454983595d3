"""The pool of ranks itself: order, errors and hangs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import tests.ranks
from tests.ranks import Ranks


def _who(rank: int, offset: int) -> tuple[int, int, int]:
    size = dist.get_world_size() if dist.is_initialized() else 1
    total = torch.tensor([rank + offset])
    if size > 1:
        dist.all_reduce(total)
    return rank, size, int(total)


def _fail(rank: int, which: int) -> None:
    if rank == which or which < 0:
        raise ValueError(f"rank {rank} says no")
    dist.barrier()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_answers_in_order(ranks: Ranks, size: int) -> None:
    total = sum(range(size)) + 10 * size
    assert ranks(size, _who, 10) == [(rank, size, total) for rank in range(size)]


def test_a_tensor_with_gradient_comes_back(ranks: Ranks) -> None:
    results = ranks(2, _tensor)
    assert [r.tolist() for r in results] == [[0.0, 0.0], [2.0, 2.0]]


def _tensor(rank: int) -> torch.Tensor:
    return torch.ones(2, requires_grad=True) * 2 * rank


def test_an_error_on_every_rank_is_raised_and_the_pool_lives(ranks: Ranks) -> None:
    with pytest.raises(ValueError, match="rank 0 says no") as caught:
        ranks(2, _fail, -1)
    assert "in _fail" in str(caught.value.__cause__)
    assert ranks(2, _who, 0)[1] == (1, 2, 1)


def test_an_error_on_one_rank_does_not_hang_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.ranks, "GRACE_SECONDS", 0.2)
    pools = Ranks()
    with pytest.raises(ValueError, match="rank 1 says no"):
        pools(2, _fail, 1)
    assert not pools._pools
    pools.close()
