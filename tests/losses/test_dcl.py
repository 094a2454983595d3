"""DCL and DCLW against a slow float64 reference, and themselves on several ranks."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.losses import dcl
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

blockwise = import_module("sslzoo.losses.blockwise")


def reference(z1: Tensor, z2: Tensor, temperature: float, sigma: float | None = None) -> Tensor:
    """Anchor by anchor, in the words of the paper's equations 5 and 6; float64."""
    rows = torch.cat([z1, z2]).double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    n, terms = len(z1), []
    pairs = [rows[i] @ rows[i + n] for i in range(n)]
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        negatives = [k for k in range(2 * n) if k not in (i, partner)]
        repel = torch.stack([rows[i] @ rows[k] / temperature for k in negatives]).logsumexp(0)
        weight: Any = 1.0
        if sigma is not None:
            mean = torch.stack([(pair / sigma).exp() for pair in pairs]).mean()
            weight = 2 - (pairs[i % n] / sigma).exp() / mean
        terms.append(repel - weight * pairs[i % n] / temperature)
    return torch.stack(terms).mean()


def _views(n: int, dtype: torch.dtype = torch.float64, dim: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, dim, generator=generator, dtype=dtype) * 3 for _ in range(2)]


@pytest.mark.parametrize("block", [1, 30, 1 << 21])
@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("sigma", [None, 0.5, 0.05])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 100.0])
def test_value_and_gradient_are_the_references(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    n: int,
    sigma: float | None,
    temperature: float,
) -> None:
    monkeypatch.setitem(blockwise._BLOCK, "cpu", block)
    options = {"temperature": temperature, "sigma": sigma}
    got, grads = value_and_gradients(partial(dcl, **options), _views(n), 2)
    want, wanted = value_and_gradients(partial(reference, **options), _views(n), 2)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-10)


def test_hand_worked_value() -> None:
    # Pair 1 has equal views, pair 2 right-angled ones; T = 0.5: a cosine of 1 is a logit of 2.
    z1, z2 = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mixed = math.log(math.exp(2) + 1)  # negatives at cosine 1 and 0: both views of pair 1
    alike = 2 + math.log(2)  # both at 1: first view of pair 2
    apart = math.log(2)  # both at 0: its second view
    want = (2 * mixed + alike + apart) / 4 - (2 + 2 + 0 + 0) / 4
    assert dcl(z1, z2, 0.5).item() == pytest.approx(want, rel=1e-6)
    # DCLW, sigma = 1: w of pair 1 is 2 - e / ((e + 1) / 2); pair 2's cosine is 0.
    weight = 2 - 2 * math.e / (math.e + 1)
    want = (2 * mixed + alike + apart) / 4 - weight * (2 + 2) / 4
    assert dcl(z1, z2, 0.5, sigma=1.0).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("sigma", [None, 0.5, 0.001])
@pytest.mark.parametrize("temperature", [0.001, 0.02, 100.0])
def test_extreme_temperatures_in_float32(temperature: float, sigma: float | None) -> None:
    views, options = _views(20), {"temperature": temperature, "sigma": sigma}
    got, grads = value_and_gradients(partial(dcl, **options), [x.float() for x in views], 2)
    assert got.isfinite()
    assert all(grad.isfinite().all() for grad in grads)
    if sigma == 0.001:  # the reference forms exp(1 / sigma)
        return
    want, wanted = value_and_gradients(partial(reference, **options), views, 2)
    assert_close_to_golden(got, want, 1e-4)
    for grad, right in zip(grads, wanted, strict=True):
        assert_close_to_golden(grad, right, 2e-3 if temperature < 0.01 else 1e-4)


def test_zero_rows_stay_finite() -> None:
    value, grads = value_and_gradients(partial(dcl, temperature=0.1), [torch.zeros(3, 4)] * 2, 2)
    assert value.item() == pytest.approx(math.log(4), rel=1e-6)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    views = [x.to(dtype) for x in _views(9)]
    loss = partial(dcl, temperature=0.05, sigma=0.5)
    want, wanted = value_and_gradients(loss, [x.float() for x in views], 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(loss, views, 2)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    for grad, right in zip(grads, wanted, strict=True):
        assert torch.equal(grad, right.to(dtype))


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_gradcheck(sigma: float | None) -> None:
    views = [x.requires_grad_() for x in _views(3)]
    loss = partial(dcl, temperature=0.3, sigma=sigma)
    assert torch.autograd.gradcheck(loss, views, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("sigma", [None, 0.5])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], sigma: float | None) -> None:
    loss = partial(dcl, temperature=0.1, sigma=sigma)
    assert_ranks_equal_one(ranks, loss, _views(6), 2, counts)


def test_the_whole_similarity_matrix_is_never_formed() -> None:
    n = 2000
    with Largest() as largest:
        value_and_gradients(partial(dcl, temperature=0.1), _views(n, torch.float32, 2), 2)
    assert largest.numel <= 1 << 21 < (2 * n) ** 2 / 7


def _on_fake_cuda(sigma: float | None) -> Tensor:
    views = [torch.randn(50, 8, device=DEVICE, requires_grad=True) for _ in range(2)]
    return dcl(*views, 0.1, sigma)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_no_host_synchronization(sigma: float | None) -> None:
    assert syncs(_on_fake_cuda, sigma) == []


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_compiles_without_graph_break(sigma: float | None) -> None:
    loss = partial(dcl, temperature=0.1, sigma=sigma)
    assert_compiles(loss, _views(6), 2)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 2), (4, 2)), (0.1, None), r"\(3, 2\) and \(4, 2\)"),
        (((3, 2), (3, 2)), (0.0, None), "temperature must be above 0, got 0.0"),
        (((3, 2), (3, 2)), (0.1, 0.0), "sigma must be above 0, got 0.0"),
        (((1, 2), (1, 2)), (0.1, None), "at least 2 pairs .*, got 1"),
    ],
)
def test_wrong_input_is_named(shapes: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dcl(torch.ones(shapes[0]), torch.ones(shapes[1]), *options)
