"""Sinkhorn against the official arrays, a slow reference, and itself on several ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslzoo.losses import sinkhorn
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def reference(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Sums of rows and columns set by turns, entry by entry; float64."""
    table = [[float(x) for x in row] for row in (scores.double() / epsilon).exp()]
    samples, prototypes = range(len(table)), range(len(table[0]))
    for _ in range(iterations):
        for k in prototypes:
            total = sum(table[i][k] for i in samples)
            for i in samples:
                table[i][k] /= total * len(prototypes)
        for i in samples:
            total = sum(table[i])
            table[i] = [x / total for x in table[i]]
    return torch.tensor(table, dtype=torch.float64)


def _scores(n: int, k: int, *more: int) -> Tensor:
    generator = torch.Generator().manual_seed(n * k)
    return 2 * torch.rand(*more, n, k, generator=generator, dtype=torch.float64) - 1


def _part(rank: int, scores: Tensor, counts: tuple[int, ...], epsilon: float) -> Tensor:
    return sinkhorn(scores.split(counts, dim=-2)[rank], epsilon)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("file", [1, 2])
def test_equals_the_authors(file: int, world: int, ranks: Ranks) -> None:
    golden = load(f"swav/sinkhorn_{file}rank.npz")
    scores, hyper = torch.from_numpy(golden["scores"]), golden["meta"]["hyper"]
    assert hyper["iters"] == 3
    counts = (len(scores) // world,) * world
    got = torch.cat(ranks(world, _part, scores, counts, hyper["epsilon"]))
    assert_close_to_golden(got, golden["assignments"], 1e-5)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.03, 0.05, 1.0])
def test_values_are_the_references(epsilon: float, iterations: int) -> None:
    scores = _scores(6, 4)
    got = sinkhorn(scores, epsilon, iterations)
    torch.testing.assert_close(got, reference(scores, epsilon, iterations), rtol=1e-9, atol=1e-13)


def test_hand_worked_value() -> None:
    # exp(scores) is [[2, 1], [1, 1]]; prototypes of sum 1: [[2/3, 1/2], [1/3, 1/2]]; then samples.
    scores = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
    wanted = torch.tensor([[4 / 7, 3 / 7], [2 / 5, 3 / 5]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, 1.0, 1), wanted)


def test_samples_sum_to_one_and_many_rounds_balance_the_prototypes() -> None:
    q = sinkhorn(_scores(12, 4), 0.05, 200)
    torch.testing.assert_close(q.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("epsilon", [1e-4, 1e-3, 100.0])
def test_extreme_epsilons_in_float32(epsilon: float) -> None:
    """exp(1 / 0.001) is no float32 and no float64: the reference works on fractions of it."""
    scores = _scores(8, 3)
    q = sinkhorn(scores.float(), epsilon)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(8))
    torch.testing.assert_close(q, sinkhorn(scores, epsilon).float(), rtol=0, atol=2e-3)


def test_large_scores_do_not_overflow() -> None:
    scores = _scores(6, 4)
    shifted = sinkhorn((scores + 100).float())  # exp(2000)
    torch.testing.assert_close(shifted, sinkhorn(scores).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    scores = _scores(6, 4).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = sinkhorn(scores)
    assert got.dtype == torch.float32
    assert torch.equal(got, sinkhorn(scores.float()))


def test_rows_of_weight_zero_are_not_there() -> None:
    scores = _scores(9, 4)
    weight = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1.0])
    q = sinkhorn(scores, weight=weight)
    torch.testing.assert_close(q[3:], sinkhorn(scores[3:]))
    assert not q[:3].any()
    assert torch.equal(sinkhorn(scores, weight=torch.ones(9)), sinkhorn(scores))


def test_a_row_of_weight_two_counts_as_two() -> None:
    scores = _scores(4, 3)
    twice = sinkhorn(scores[[0, 0, 1, 2, 3]])
    weighted = sinkhorn(scores, weight=torch.tensor([2.0, 1, 1, 1]))
    torch.testing.assert_close(weighted[1:], twice[2:])
    torch.testing.assert_close(weighted[0], 2 * twice[0])


def test_several_problems_at_once_are_each_by_itself() -> None:
    scores = _scores(6, 4, 2)
    assert torch.equal(sinkhorn(scores), torch.stack([sinkhorn(one) for one in scores]))


@pytest.mark.parametrize("epsilon", [0.05, 0.001])
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], epsilon: float) -> None:
    scores = _scores(6, 4, 2)
    got = torch.cat(ranks(len(counts), _part, scores, counts, epsilon), dim=1)
    torch.testing.assert_close(got, sinkhorn(scores, epsilon), rtol=1e-9, atol=1e-13)


def test_no_gradient_and_no_change_of_the_scores() -> None:
    scores = _scores(6, 4).requires_grad_()
    before = scores.detach().clone()
    assert not sinkhorn(scores).requires_grad
    assert torch.equal(scores, before)


def _on_fake_cuda() -> None:
    sinkhorn(torch.randn(50, 8, device=DEVICE), weight=torch.ones(50, device=DEVICE))


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3),), r"got \(3,\)"),
        ((torch.ones(3, 2), 0.05, 3, torch.ones(2)), r"\(3, 2\) and \(2,\)"),
        ((torch.ones(3, 2), 0.0), "got 0.0"),
        ((torch.ones(3, 2), 0.05, 0), "iterations must be above 0, got 0"),
    ],
)
def test_wrong_input_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(*arguments)
