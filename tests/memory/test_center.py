"""The center: a mean over every row of a step, on any number of ranks and micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslzoo.memory import Center, memory_buffers
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def _logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 5, generator=generator, dtype=torch.float64)


def _center() -> Center:
    return Center(5, momentum=0.75).double()


def _step(rank: int, parts: list[list[int]]) -> Tensor:
    """parts: rows of each micro-batch of each rank; rows in (micro-batch, rank) order."""
    center, pieces = _center(), list(_logits().split([n for of_micro in parts for n in of_micro]))
    for _ in range(2):
        for i, of_micro in enumerate(parts):
            mine = pieces[i * len(of_micro) + rank]
            center.stage(mine.mean(dim=0), len(mine))
        center.commit()
    return center.read()


def test_hand_worked_value() -> None:
    center = Center(2, momentum=0.9)
    center.stage(torch.tensor([1.0, 2.0]), 1)
    center.stage(torch.tensor([4.0, -1.0]), 2)
    assert torch.equal(center.read(), torch.zeros(2))
    center.commit()
    torch.testing.assert_close(center.read(), torch.tensor([0.3, 0.0]))


@pytest.mark.parametrize(
    "parts", [[[6, 6]], [[5, 7]], [[3, 3], [3, 3]], [[1, 4], [5, 2]], [[2, 3, 7]]]
)
def test_ranks_and_micro_batches_equal_one(ranks: Ranks, parts: list[list[int]]) -> None:
    mean = _logits().mean(dim=0)
    wanted = 0.25 * mean + 0.75 * 0.25 * mean
    for result in ranks(len(parts[0]), _step, parts):
        torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-14)


def test_it_is_in_the_checkpoint_and_not_broadcast_by_ddp() -> None:
    center = _center()
    assert list(center.state_dict()) == ["rows"]
    assert memory_buffers(torch.nn.ModuleDict({"center": center})) == ["center.rows"]


def _on_fake_cuda() -> None:
    with torch.device(DEVICE):
        center = Center(5)
    center.stage(torch.ones(5, device=DEVICE), 3)
    center.commit()


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"got 0 and 0\.9"):
        Center(0)
    with pytest.raises(ValueError, match="got 5 and 1"):
        Center(5, momentum=1.0)
    with pytest.raises(ValueError, match=r"mean must be \(5,\), got \(3, 5\)"):
        _center().stage(_logits()[:3], 3)
