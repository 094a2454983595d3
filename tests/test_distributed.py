"""Gathers and sums on real ranks: order, uneven rows, gradients, and the rule of the losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslzoo import distributed
from sslzoo.distributed import (
    Rows,
    agree_on_step,
    barrier,
    broadcast_,
    gather,
    gather_objects,
    gather_rows,
    global_sum,
    keep_buckets,
    row_layout,
    sum_over_ranks,
)
from tests.ranks import Ranks

COUNTS = [(6,), (3, 3), (5, 1), (6, 0), (2, 2, 2), (1, 3, 2), (0, 0, 6)]


def _data(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _layout(rank: int, counts: tuple[int, ...]) -> tuple[Rows, slice, int, int, bool]:
    rows = row_layout(counts[rank])
    here = distributed.rank(), distributed.world_size(), distributed.is_distributed()
    return rows, rows.own, *here


@pytest.mark.parametrize("counts", COUNTS)
def test_the_layout_is_known_on_every_rank(ranks: Ranks, counts: tuple[int, ...]) -> None:
    size, results = len(counts), ranks(len(counts), _layout, counts)
    for rank, (rows, own, *here) in enumerate(results):
        start = sum(counts[:rank])
        assert rows == Rows(counts, start, 6)
        assert own == slice(start, start + counts[rank])
        assert here == [rank, size, size > 1]


def _gathers(rank: int, x: Tensor, counts: tuple[int, ...]) -> tuple[Any, ...]:
    mine = x.split(counts)[rank].clone().requires_grad_()
    rows = row_layout(len(mine))
    index = gather_rows(torch.arange(6).split(counts)[rank], rows)
    return gather(mine).detach(), gather_rows(mine, rows), index, gather_rows(mine).requires_grad


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 2, 3)])
def test_a_gather_is_the_global_batch_in_rank_order(
    ranks: Ranks, counts: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    x = _data(*shape)
    for gathered, plain, index, with_gradient in ranks(len(counts), _gathers, x, counts):
        assert torch.equal(gathered, x)
        assert torch.equal(plain, x)
        assert index.tolist() == list(range(6))
        assert not with_gradient


def _loss(rank: int, x: Tensor, weight: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """sum over i, j of w_ij <x_i, x_j>^2 with the rows i of this rank, by the losses' rule."""
    mine = x.split(counts)[rank].clone().requires_grad_()
    rows = row_layout(len(mine))
    dots = mine @ gather(mine, rows).T
    value = (weight[rows.own] * dots.square()).sum() * (len(counts) / rows.total)
    value.backward()
    assert mine.grad is not None
    return value.detach(), mine.grad


@pytest.mark.parametrize("counts", COUNTS[1:])
def test_the_mean_over_ranks_is_the_loss_and_gradient_of_one(
    ranks: Ranks, counts: tuple[int, ...]
) -> None:
    x, weight = _data(6, 4), _data(6, 6)  # not symmetric: a gather without its sum would show
    value, grad = _loss(0, x, weight, (6,))
    results = ranks(len(counts), _loss, x, weight, counts)
    mean = torch.stack([part for part, _ in results]).mean()
    torch.testing.assert_close(mean, value, rtol=1e-7, atol=0)
    joined = torch.cat([part for _, part in results]) / len(counts)
    torch.testing.assert_close(joined, grad, rtol=1e-7, atol=1e-12)


def _sums(rank: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mine = x[rank].clone().requires_grad_()
    total = global_sum(mine)
    (total.square().sum() * (rank + 1)).backward()
    assert mine.grad is not None
    return total.detach(), mine.grad, sum_over_ranks(mine)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sums_and_their_gradient(ranks: Ranks, size: int) -> None:
    x = _data(size, 4)
    weight = sum(range(1, size + 1))  # every rank's loss counts
    for total, grad, plain in ranks(size, _sums, x):
        torch.testing.assert_close(total, x.sum(0))
        torch.testing.assert_close(plain, x.sum(0))
        torch.testing.assert_close(grad, 2 * weight * x.sum(0))


def _host(rank: int) -> tuple[list[Any], list[float], bool]:
    x = torch.full((2,), float(rank))
    same = broadcast_(x, source=distributed.world_size() - 1) is x
    barrier()
    return gather_objects({"rank": rank}), x.tolist(), same


@pytest.mark.parametrize("size", [1, 2, 3])
def test_objects_and_broadcast(ranks: Ranks, size: int) -> None:
    for objects, x, same in ranks(size, _host):
        assert objects == [{"rank": r} for r in range(size)]
        assert x == [size - 1.0] * 2
        assert same


def test_one_process_copies_nothing() -> None:
    x = torch.ones(3, requires_grad=True)
    assert gather(x) is x
    assert global_sum(x) is x
    assert gather_rows(x).data_ptr() == x.data_ptr()


def _compiled(rank: int, x: Tensor) -> tuple[Tensor, Tensor]:
    mine = x[rank].clone().requires_grad_()
    rows = row_layout(len(mine))

    def run(mine: Tensor) -> Tensor:
        return (gather(mine, rows).square() * (rank + 1)).sum() + global_sum(mine).square().sum()

    value = torch.compile(run, fullgraph=True, backend="aot_eager")(mine)
    value.backward()
    assert mine.grad is not None
    return value.detach(), mine.grad


def test_collectives_compile_without_graph_break(ranks: Ranks) -> None:
    x = _data(2, 3, 2)
    for rank, (value, grad) in enumerate(ranks(2, _compiled, x)):
        want = x.square().sum() * (rank + 1) + x.sum(0).square().sum()
        torch.testing.assert_close(value, want)
        torch.testing.assert_close(grad, 6 * x[rank] + 4 * x.sum(0))


def _steps_until_stop(rank: int, asked: list[int]) -> int:
    """Take steps, each of which waits for all ranks; the rank is asked to stop during one."""
    for step in range(1, 9):
        barrier()
        if step >= asked[rank] and agree_on_step(step) == step:
            return step
    return -1


def test_ranks_stop_behind_the_same_step(ranks: Ranks) -> None:
    """Asked at steps 2 and 3, both stop at 4: then each has seen that the other was asked."""
    assert ranks(2, _steps_until_stop, [3, 2]) == [4, 4]
    assert agree_on_step(5) == 5


class _OtherOrder(nn.Module):
    """Gradients come in another order than that of the reversed parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(32, 8).double()
        self.first = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def _ddp_steps(rank: int, steps: range, saved: dict[str, Tensor] | None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = _OtherOrder()
    net.load_state_dict(saved or net.state_dict())
    model = DistributedDataParallel(net)
    keep_buckets(model)
    for step in steps:
        generator = torch.Generator().manual_seed(100 * step + rank)
        x = torch.randn(8, 16, generator=generator, dtype=torch.float64)
        net.zero_grad()
        model(x).square().mean().backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad
    return {name: value.clone() for name, value in net.state_dict().items()}


def _broken_and_whole(rank: int) -> list[bool]:
    whole = _ddp_steps(rank, range(8), None)
    half = _ddp_steps(rank, range(3), None)
    broken = _ddp_steps(rank, range(3, 8), half)
    return [whole[name].equal(broken[name]) for name in whole]


def test_resumed_ddp_of_three_ranks_rounds_as_the_unbroken_one(ranks: Ranks) -> None:
    assert all(map(all, ranks(3, _broken_and_whole)))
