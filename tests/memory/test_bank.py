"""The memory bank: initial rows, update, order, duplicates, ranks and saving."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.memory import MemoryBank, memory_buffers
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

_Micro = tuple[Tensor, Tensor]


def _bank(size: int = 8, momentum: float = 0.5, **options: object) -> MemoryBank:
    return MemoryBank(size, 3, momentum=momentum, seed=1, **options).double()  # type: ignore[arg-type]


def _unit(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def reference(rows: Tensor, momentum: float, written: Sequence[_Micro]) -> Tensor:
    """One row after the other, each from the rows before the step."""
    old, new = rows, rows.clone()
    for index, values in written:
        for i, value in zip(index.tolist(), values, strict=True):
            mixed = momentum * old[i] + (1 - momentum) * value
            new[i] = mixed / mixed.norm()
    return new


def test_initial_rows_are_uniform_of_expected_norm_one_and_follow_the_seed() -> None:
    rows = MemoryBank(4000, 12, seed=3).rows
    limit = 1 / math.sqrt(12 / 3)
    assert rows.abs().max() <= limit
    assert rows.abs().max() > 0.99 * limit
    assert rows.square().sum(1).mean().item() == pytest.approx(1, abs=0.02)
    assert rows.mean().abs() < 0.01
    assert torch.equal(rows, MemoryBank(4000, 12, seed=3).rows)
    assert not torch.equal(rows, MemoryBank(4000, 12, seed=4).rows)


def test_the_runs_seed_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert torch.equal(MemoryBank(5, 3).rows, MemoryBank(5, 3, seed=17).rows)


def test_the_initial_rows_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    MemoryBank(5, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_commit_writes_the_normalized_mixture(momentum: float) -> None:
    bank = _bank(momentum=momentum)
    before = bank.rows.clone()
    index, values = torch.tensor([6, 0, 3]), _unit(3, 3)
    bank.stage(index, values)
    assert torch.equal(bank.rows, before)  # a step never sees its own rows
    assert bank._staged
    bank.commit()
    assert not bank._staged
    torch.testing.assert_close(bank.rows, reference(before, momentum, [(index, values)]))
    written = bank.rows.clone()
    bank.commit()
    assert torch.equal(bank.rows, written)


def test_hand_worked_update() -> None:
    bank = MemoryBank(1, 2, momentum=0.25)
    bank.overwrite(torch.tensor([0]), torch.tensor([[4.0, 0.0]]))
    bank.stage(torch.tensor([0]), torch.tensor([[0.0, 1.0]]))
    bank.commit()  # (1, 0.75) / 1.25
    torch.testing.assert_close(bank.rows, torch.tensor([[0.8, 0.6]]))


def test_the_last_of_several_rows_for_a_sample_wins() -> None:
    bank = _bank()
    before = bank.rows.clone()
    index, values = torch.tensor([5, 2, 5, 5, 2, 0]), _unit(6, 3)
    bank.stage(index[:4], values[:4])
    bank.stage(index[4:], values[4:])
    bank.commit()
    torch.testing.assert_close(bank.rows, reference(before, 0.5, [(index, values)]))


def test_staged_rows_are_detached() -> None:
    bank = _bank()
    values = _unit(2, 3).requires_grad_()
    bank.stage(torch.tensor([0, 1]), values * 2)
    bank.commit()
    assert not bank.rows.requires_grad


def _on_rank(
    rank: int, micro_batches: list[_Micro], counts: list[tuple[int, ...]], overwrite: bool
) -> Tensor:
    bank = _bank()
    for (index, values), sizes in zip(micro_batches, counts, strict=True):
        write = bank.overwrite if overwrite else bank.stage
        write(index.split(sizes)[rank], values.split(sizes)[rank])
    bank.commit()
    return bank.rows


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "counts", [[(4, 4)], [(5, 3), (2, 6)], [(8, 0), (1, 7)], [(3, 3, 2), (0, 5, 3)]]
)
def test_ranks_equal_one(ranks: Ranks, counts: list[tuple[int, ...]], overwrite: bool) -> None:
    generator = torch.Generator().manual_seed(len(counts))
    micro_batches = [
        (torch.randint(8, (8,), generator=generator), _unit(8, 3) * (i + 1))
        for i, _ in enumerate(counts)
    ]
    one = _on_rank(0, micro_batches, [(8,)] * len(counts), overwrite)
    if not overwrite:
        wanted = reference(_bank().rows, 0.5, micro_batches)
        torch.testing.assert_close(one, wanted)
    for rows in ranks(len(counts[0]), _on_rank, micro_batches, counts, overwrite):
        assert torch.equal(rows, one)


def _stage_unequally(rank: int) -> None:
    bank = _bank()
    for _ in range(rank + 1):
        bank.stage(torch.tensor([0]), _unit(1, 3))
    bank.commit()


def test_ranks_out_of_step_are_named(ranks: Ranks) -> None:
    with pytest.raises(RuntimeError, match=r"equally many micro-batches, got \[1, 2\]"):
        ranks(2, _stage_unequally)


def test_saving_keeps_the_rows_and_drops_what_is_staged() -> None:
    bank = _bank()
    bank.stage(torch.tensor([0]), _unit(1, 3))
    bank.commit()
    state = copy.deepcopy(bank.state_dict())
    assert list(state) == ["rows"]
    other = MemoryBank(8, 3, seed=9).double()
    other.stage(torch.tensor([4]), _unit(1, 3))
    other.load_state_dict(state)
    assert not other._staged
    other.commit()
    assert torch.equal(other.rows, bank.rows)


def test_bfloat16_rows_are_read_and_mixed_in_float32() -> None:
    bank = MemoryBank(4, 3, dtype=torch.bfloat16, seed=0)
    index, values = torch.tensor([2, 0]), _unit(2, 3).float()
    old = bank.read(index)
    assert old.dtype == torch.float32
    assert torch.equal(old, bank.rows.float()[index])
    bank.stage(index, values.half())
    bank.commit()
    want = F.normalize(0.5 * old + 0.5 * values.half().float(), dim=1).bfloat16()
    assert torch.equal(bank.rows[index], want)


def test_memory_buffers_are_named_for_ddp() -> None:
    model = nn.Module()
    model.inner = nn.Sequential(nn.BatchNorm1d(2), MemoryBank(4, 3))
    assert memory_buffers(model) == ["inner.1.rows"]
    assert set(memory_buffers(model)) <= {name for name, _ in model.named_buffers()}
    assert memory_buffers(MemoryBank(4, 3)) == ["rows"]


def _make(size: int, dim: int) -> MemoryBank:
    bank = MemoryBank(size, dim)
    bank.rows = torch.zeros(size, dim, device=DEVICE)
    return bank


def _on_fake_cuda(bank: MemoryBank) -> None:
    for _ in range(2):
        bank.stage(torch.zeros(4, dtype=torch.int64, device=DEVICE), bank.rows[:4])
    bank.commit()


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda, 8, 3, make=_make) == []


def test_meta_construction_draws_nothing() -> None:
    with torch.device("meta"):
        assert MemoryBank(10**9, 128).rows.is_meta


def test_wrong_input_is_named() -> None:
    bank = _bank()
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3, 3\)"):
        bank.stage(torch.tensor([0, 1]), _unit(3, 3))
    with pytest.raises(ValueError, match=r"got \(0, 3\)"):
        MemoryBank(0, 3)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        MemoryBank(2, 3, momentum=1.5)
