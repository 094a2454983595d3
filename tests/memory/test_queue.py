"""The queue: initial rows, ring, order, ranks and saving."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.memory import Queue, memory_buffers
from tests.golden import assert_close_to_golden, load
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def _queue(size: int = 7) -> Queue:
    return Queue(size, 3, seed=1).double()


def _unit(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def reference(rows: Tensor, pointer: int, values: Tensor) -> tuple[Tensor, int]:
    """One row after the other."""
    rows = rows.clone()
    for value in values:
        rows[pointer] = value
        pointer = (pointer + 1) % len(rows)
    return rows, pointer


def test_initial_rows_are_normalized_gaussians_and_follow_the_seed() -> None:
    rows = Queue(4000, 12, seed=3).rows
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4000))
    assert rows.mean().abs() < 0.01
    # a normalized Gaussian's coordinate: E x^2 = 1 / D, E x^4 = 3 / (D (D + 2))
    assert rows.square().mean().item() == pytest.approx(1 / 12, rel=1e-3)
    assert rows.pow(4).mean().item() == pytest.approx(3 / (12 * 14), rel=0.03)
    assert torch.equal(rows, Queue(4000, 12, seed=3).rows)
    assert not torch.equal(rows, Queue(4000, 12, seed=4).rows)


def test_the_runs_seed_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert torch.equal(Queue(5, 3).rows, Queue(5, 3, seed=17).rows)


def test_the_initial_rows_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    Queue(5, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [1, 4, 7, 8, 100])
def test_the_ring_wraps_at_any_size(size: int) -> None:
    queue = _queue(size)
    rows, pointer = queue.rows.clone(), 0
    for step in range(9):
        values = _unit(4, 3) * (step + 1)  # rows of different steps differ
        queue.stage(values)
        assert torch.equal(queue.rows, rows)  # a step never sees its own rows
        assert queue._staged
        queue.commit()
        assert not queue._staged
        rows, pointer = reference(rows, pointer, values)
        assert torch.equal(queue.rows, rows)
        assert int(queue.pointer) == pointer
    queue.commit()  # nothing staged
    assert torch.equal(queue.rows, rows)


def test_the_oldest_row_goes_first() -> None:
    queue = Queue(3, 1)
    for value in (1.0, 2.0, 3.0, 4.0):
        queue.stage(torch.tensor([[value]]))
        queue.commit()
    assert queue.rows.flatten().tolist() == [4.0, 2.0, 3.0]
    assert int(queue.pointer) == 1
    queue.stage(torch.tensor([[5.0], [6.0], [7.0], [8.0]]))  # more than there is room for
    queue.commit()
    assert queue.rows.flatten().tolist() == [7.0, 8.0, 6.0]
    assert int(queue.pointer) == 2


def test_staged_rows_are_detached() -> None:
    queue = _queue()
    queue.stage(_unit(2, 3).requires_grad_() * 2)
    queue.commit()
    assert not queue.rows.requires_grad


def test_what_is_read_is_of_float32_at_least() -> None:
    queue = _queue()
    assert queue.read().dtype == torch.float64
    queue.bfloat16()
    assert queue.read().dtype == torch.float32
    assert torch.equal(queue.read(), queue.rows.float())
    assert queue.pointer.dtype == torch.int64


def _on_rank(
    rank: int, micro_batches: list[Tensor], counts: list[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    queue = _queue()
    for _ in range(3):
        for values, sizes in zip(micro_batches, counts, strict=True):
            queue.stage(values.split(sizes)[rank])
        queue.commit()
    return queue.rows, queue.pointer


@pytest.mark.parametrize(
    "counts", [[(2, 3)], [(3, 2), (1, 4)], [(5, 0), (1, 4)], [(2, 2, 1), (0, 4, 1)]]
)
def test_ranks_equal_one(ranks: Ranks, counts: list[tuple[int, ...]]) -> None:
    micro_batches = [_unit(5, 3) * (i + 1) for i, _ in enumerate(counts)]
    rows, pointer = _on_rank(0, micro_batches, [(5,)] * len(counts))
    want, at = _queue().rows, 0
    for _ in range(3):
        want, at = reference(want, at, torch.cat(micro_batches))
    assert torch.equal(rows, want)
    assert int(pointer) == at
    for of_rank, at_rank in ranks(len(counts[0]), _on_rank, micro_batches, counts):
        assert torch.equal(of_rank, want)
        assert int(at_rank) == at


def test_saving_keeps_rows_and_pointer_and_drops_what_is_staged() -> None:
    queue = _queue()
    queue.stage(_unit(5, 3))
    queue.commit()
    state = copy.deepcopy(queue.state_dict())
    assert list(state) == ["rows", "pointer"]
    other = Queue(7, 3, seed=9).double()
    other.stage(_unit(1, 3))
    other.load_state_dict(state)
    assert not other._staged
    for which in (queue, other):
        which.stage(_unit(4, 3))
        which.commit()
    assert torch.equal(other.rows, queue.rows)
    assert int(other.pointer) == int(queue.pointer) == 2


def test_its_buffers_are_named_for_ddp() -> None:
    model = nn.Module()
    model.inner = nn.Sequential(nn.BatchNorm1d(2), Queue(4, 3))
    assert memory_buffers(model) == ["inner.1.rows", "inner.1.pointer"]


def _make(size: int, dim: int) -> Queue:
    queue = Queue(1, dim)
    queue.rows = torch.zeros(size, dim, device=DEVICE)
    queue.pointer = torch.zeros((), dtype=torch.int64, device=DEVICE)
    return queue


def _on_fake_cuda(queue: Queue) -> None:
    for _ in range(2):
        queue.stage(queue.read()[:6])
    queue.commit()


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda, 8, 3, make=_make) == []


def test_meta_construction_draws_nothing() -> None:
    with torch.device("meta"):
        assert Queue(10**9, 128).rows.is_meta


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"values must be \(n, 3\), got \(3, 4\)"):
        _queue().stage(_unit(3, 4))
    with pytest.raises(ValueError, match="size of the queue must be at least 1, got 0"):
        Queue(0, 3)


def test_six_steps_equal_the_authors() -> None:
    z = load("moco/queue_steps.npz")
    queue = Queue(z["meta"]["hyper"]["K"], z["meta"]["hyper"]["dim"])
    queue.rows.copy_(torch.from_numpy(z["queue_before"]).T)
    for step, keys in enumerate(torch.from_numpy(z["keys"])):
        queue.stage(keys)
        queue.commit()
        assert_close_to_golden(queue.read().T, z["queue_after"][step])
        assert int(queue.pointer) == z["ptr_after"][step]


def test_an_empty_start_is_full_once_every_row_was_written() -> None:
    queue = Queue(5, 3, empty=True)
    assert not queue.rows.any()
    full = []
    for _ in range(4):
        full.append(bool(queue.full))
        queue.stage(_unit(2, 3))
        queue.commit()
    assert full == [False, False, False, True]
    again = Queue(5, 3, empty=True)
    again.load_state_dict(queue.state_dict())
    assert again.full
    assert Queue(5, 3).full  # what begins with random rows always is
