"""Swapped prediction against a slow reference, and itself on several ranks.

The official arrays are in tests/methods/test_swav.py, with the queue.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.losses import swapped_prediction
from tests.golden import assert_close_to_golden
from tests.losses.parity import (
    COUNTS,
    Largest,
    assert_compiles,
    assert_ranks_equal_one,
    value_and_gradients,
)
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def loss(z: Tensor, q: Tensor, prototypes: Tensor, assigned: tuple, temperature: float) -> Tensor:
    """With one row a sample in z and q, (B, A, K), as the comparison of ranks wants."""
    return swapped_prediction(z, prototypes, q.transpose(0, 1), assigned, temperature)


def reference(
    z: Tensor, q: Tensor, prototypes: Tensor, assigned: tuple, temperature: float
) -> Tensor:
    """Pair by pair of crops, sample by sample."""
    terms = []
    for a, crop in enumerate(assigned):
        for other in range(z.shape[1]):
            if other == crop:
                continue
            for i in range(len(z)):
                logits = torch.stack([z[i, other] @ c for c in prototypes]) / temperature
                terms.append(-(q[i, a] * (logits - logits.logsumexp(0))).sum())
    return torch.stack(terms).mean()


def _inputs(n: int = 6, crops: int = 4, targets: int = 2, dtype: Any = torch.float64) -> list:
    generator = torch.Generator().manual_seed(n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    z, prototypes = F.normalize(normal(n, crops, 5), dim=-1), F.normalize(normal(7, 5), dim=1)
    q = normal(n, targets, 7).softmax(-1)
    return [x.to(dtype) for x in (z, prototypes, q)]


@pytest.mark.parametrize("temperature", [0.01, 0.1, 10.0])
@pytest.mark.parametrize("assigned", [(0, 1), (2,), (3, 0, 1)])
@pytest.mark.parametrize("crops", [4, 5])
def test_value_and_gradient_are_the_references(
    crops: int, assigned: tuple[int, ...], temperature: float
) -> None:
    z, prototypes, q = _inputs(crops=crops, targets=len(assigned))

    def of(function: Any) -> Any:
        call = lambda z, c, q: function(z, q, c, assigned, temperature)  # noqa: E731
        return value_and_gradients(call, [z, prototypes, q], 2)

    (got, grads), (want, wanted) = of(loss), of(reference)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-11)


def test_hand_worked_value() -> None:
    # Crop 0 is prototype 0, crop 1 is prototype 1, T = 1, and each is assigned what it is: both
    # pairs have the logits 0 and 1 with the target on the 0.
    z = torch.eye(2)[None]
    q = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    value = swapped_prediction(z, torch.eye(2), q, [0, 1], 1.0)
    assert value.item() == pytest.approx(math.log(1 + math.e), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 100.0])
def test_extreme_temperatures_in_float32(temperature: float) -> None:
    def of(function: Any, dtype: Any) -> Any:
        call = lambda z, c, q: function(z, q, c, (0, 1), temperature)  # noqa: E731
        return value_and_gradients(call, [x.to(dtype) for x in _inputs()], 2)

    (got, grads), (want, wanted) = of(loss, torch.float32), of(reference, torch.float64)
    assert_close_to_golden(got, want, 1e-5)
    for grad, right in zip(grads, wanted, strict=True):
        assert_close_to_golden(grad, right, 2e-3 if temperature < 0.01 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, prototypes, q = _inputs(dtype=dtype)
    call = lambda z, c: loss(z, q, c, (0, 1), 0.1)  # noqa: E731
    want, wanted = value_and_gradients(call, [z.float(), prototypes.float()], 2)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            got, grads = value_and_gradients(call, [z, prototypes], 2)
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        for grad, right in zip(grads, wanted, strict=True):
            assert torch.equal(grad, right.to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    z, prototypes, q = _inputs()
    of_rank = partial(loss, prototypes=prototypes, assigned=(0, 2), temperature=0.1)
    assert_ranks_equal_one(ranks, of_rank, [z, q], 1, counts)


def _gradient_by_prototypes(rank: int, counts: tuple[int, ...]) -> Tensor:
    z, prototypes, q = _inputs()
    z, q = z.split(counts)[rank], q.split(counts)[rank]
    return value_and_gradients(lambda c: loss(z, q, c, (0, 1), 0.1), [prototypes], 1)[1][0]


@pytest.mark.parametrize("counts", COUNTS)
def test_the_prototypes_gradient_is_the_mean_over_ranks(
    ranks: Ranks, counts: tuple[int, ...]
) -> None:
    mean = torch.stack(ranks(len(counts), _gradient_by_prototypes, counts)).mean(0)
    torch.testing.assert_close(mean, _gradient_by_prototypes(0, (6,)), rtol=1e-7, atol=1e-12)


def test_targets_get_no_gradient() -> None:
    z, prototypes, q = (x.requires_grad_() for x in _inputs())
    loss(z, q, prototypes, (0, 1), 0.1).backward()
    assert q.grad is None


def test_logits_of_all_crops_never_exist_together() -> None:
    z, prototypes = torch.randn(500, 6, 4), torch.randn(300, 4)
    q = torch.rand(500, 2, 300)
    with Largest() as largest:
        value_and_gradients(lambda z, c: loss(z, q, c, (0, 1), 0.1), [z, prototypes], 2)
    assert largest.numel <= 2 * 500 * 300 < 500 * 6 * 300 / 2


def _on_fake_cuda() -> Tensor:
    z = torch.randn(50, 4, 8, device=DEVICE, requires_grad=True)
    prototypes = torch.randn(9, 8, device=DEVICE, requires_grad=True)
    return swapped_prediction(z, prototypes, torch.rand(2, 50, 9, device=DEVICE), [0, 1], 0.1)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    z, prototypes, q = _inputs()
    call = lambda z, c: loss(z, q, c, (0, 1), 0.1)  # noqa: E731
    assert_compiles(call, [z, prototypes], 2)


@pytest.mark.parametrize(
    ("shapes", "assigned", "temperature", "message"),
    [
        (((3, 2), (4, 2), (1, 3, 4)), [0], 0.1, r"got \(3, 2\)"),
        (((3, 2, 5), (4, 6), (1, 3, 4)), [0], 0.1, r"\(4, 6\)"),
        (((3, 2, 5), (4, 5), (1, 3, 4)), [0, 1], 0.1, r"assignments must be \(2, B, K\)"),
        (((3, 1, 5), (4, 5), (1, 3, 4)), [0], 0.1, "got 1 crops"),
        (((3, 2, 5), (4, 5), (2, 3, 4)), [0, 0], 0.1, r"got 2 crops and \[0, 0\]"),
        (((3, 2, 5), (4, 5), (1, 3, 4)), [2], 0.1, r"in 0..1, got \[2\]"),
        (((3, 2, 5), (4, 5), (1, 3, 4)), [0], 0.0, "above 0, got 0.0"),
    ],
)
def test_wrong_input_is_named(
    shapes: Any, assigned: list[int], temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        swapped_prediction(*(torch.ones(s) for s in shapes), assigned, temperature)
