"""Cluster cross entropy against torch's own, and itself on several ranks.

No official arrays hold this loss: the reference repeats the authors' call of torch's.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.losses import cluster_cross_entropy
from tests.golden import assert_close_to_golden
from tests.losses.parity import COUNTS, Largest, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def loss(z: Tensor, labels: Tensor, centroids: list[Tensor], temperature: float) -> Tensor:
    return cluster_cross_entropy(z, centroids, labels, temperature)


def reference(z: Tensor, labels: Tensor, centroids: list[Tensor], temperature: float) -> Tensor:
    """The scores of all crops at once, crop after crop, and the labels repeated."""
    rows = z.transpose(0, 1).flatten(0, 1)
    value = z.new_zeros(())
    for h, keys in enumerate(centroids):
        targets = labels[:, h].repeat(z.shape[1])
        value = value + F.cross_entropy(rows @ keys.T / temperature, targets, ignore_index=-100)
    return value / len(centroids)


def _inputs(n: int = 6, dtype: Any = torch.float64) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(n)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)

    labels = torch.randint(0, 4, (n, 2), generator=generator)
    labels[1] = -100
    labels[4, 1] = -100
    return unit(n, 3, 5).to(dtype), labels, [unit(7, 5).to(dtype), unit(4, 5).to(dtype)]


@pytest.mark.parametrize("temperature", [0.01, 0.1, 10.0])
def test_value_and_gradient_are_the_references(temperature: float) -> None:
    z, labels, centroids = _inputs()

    def of(function: Any) -> Any:
        return value_and_gradients(lambda z: function(z, labels, centroids, temperature), [z], 1)

    (got, grads), (want, wanted) = of(loss), of(reference)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-11)


def test_hand_worked_value() -> None:
    # Two crops with the logits (2, 0) and (0, 2), T = 0.5, both of cluster 0.
    z = torch.eye(2)[None]
    value = cluster_cross_entropy(z, [torch.eye(2)], torch.tensor([[0]]), 0.5)
    assert value.item() == pytest.approx(math.log(1 + math.exp(2)) - 1, rel=1e-6)


def test_nothing_to_name_is_zero_with_zero_gradient() -> None:
    z, labels, centroids = _inputs()
    nothing = torch.full_like(labels, -100)
    value, grads = value_and_gradients(lambda z: loss(z, nothing, centroids, 0.1), [z], 1)
    assert value == 0
    assert not grads[0].any()


@pytest.mark.parametrize("temperature", [0.001, 0.01, 100.0])
def test_extreme_temperatures_in_float32(temperature: float) -> None:
    def of(function: Any, dtype: Any) -> Any:
        z, labels, centroids = _inputs(dtype=dtype)
        return value_and_gradients(lambda z: function(z, labels, centroids, temperature), [z], 1)

    (got, grads), (want, wanted) = of(loss, torch.float32), of(reference, torch.float64)
    assert_close_to_golden(got, want, 1e-5)
    assert_close_to_golden(grads[0], wanted[0], 2e-3 if temperature < 0.01 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, labels, centroids = _inputs(dtype=dtype)
    call = lambda z: loss(z, labels, centroids, 0.1)  # noqa: E731
    want, wanted = value_and_gradients(call, [z.float()], 1)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            got, grads = value_and_gradients(call, [z], 1)
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        assert torch.equal(grads[0], wanted[0].to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    """Ranks hold different numbers of samples that have a cluster."""
    z, labels, centroids = _inputs()
    of_rank = partial(loss, centroids=centroids, temperature=0.1)
    assert_ranks_equal_one(ranks, of_rank, [z, labels], 1, counts)


def test_logits_of_all_crops_never_exist_together() -> None:
    z, centroids = torch.randn(500, 6, 4), [torch.randn(300, 4)] * 2
    labels = torch.zeros(500, 2, dtype=torch.int64)
    with Largest() as largest:
        value_and_gradients(lambda z: loss(z, labels, centroids, 0.1), [z], 1)
    assert largest.numel <= 500 * 300


def _on_fake_cuda() -> Tensor:
    z = torch.randn(50, 4, 8, device=DEVICE, requires_grad=True)
    labels = torch.zeros(50, 2, dtype=torch.int64, device=DEVICE)
    return cluster_cross_entropy(z, [torch.randn(9, 8, device=DEVICE)] * 2, labels, 0.1)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


@pytest.mark.parametrize(
    ("shapes", "temperature", "message"),
    [
        (((3, 5), (4, 5), (3, 1)), 0.1, r"got \(3, 5\)"),
        (((3, 2, 5), (4, 6), (3, 1)), 0.1, r"\(4, 6\)"),
        (((3, 2, 5), (4, 5), (3, 2)), 0.1, r"labels must be \(B, H\) = \(3, 1\), got \(3, 2\)"),
        (((3, 2, 5), (4, 5), (3, 1)), 0.0, "above 0, got 0.0"),
    ],
)
def test_wrong_input_is_named(shapes: Any, temperature: float, message: str) -> None:
    z, centroids, labels = shapes
    with pytest.raises(ValueError, match=message):
        cluster_cross_entropy(
            torch.ones(z), [torch.ones(centroids)], torch.zeros(labels).long(), temperature
        )
