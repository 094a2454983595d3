"""InvaSpread's loss against a slow float64 reference, the official arrays, and on ranks."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.losses import invaspread
from tests.golden import assert_close_to_golden, load
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


def reference(f1: Tensor, f2: Tensor, temperature: float, m: float = 1.0) -> Tensor:
    """Anchor by anchor, 1 - P by the sum over the other keys; keys detached; float64."""
    x = torch.cat([f1, f2]).double()
    n, terms = len(f1), []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k not in (i, partner)]
        s = x.detach() @ x[i] / temperature
        parts = torch.cat([s[partner][None], *[s[k][None] + math.log(m) for k in others]])
        log_d = parts.logsumexp(0)
        loss = log_d - s[partner]
        for number, k in enumerate(others):
            rest = torch.cat([parts[: number + 1], parts[number + 2 :]])
            if m > 1:
                rest = torch.cat([rest, s[k][None] + math.log(m - 1)])
            loss = loss - m * (rest.logsumexp(0) - log_d)
        terms.append(loss)
    return torch.stack(terms).mean()


def _views(n: int, dim: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    draw = partial(torch.randn, n, dim, generator=generator, dtype=dtype)
    return [F.normalize(draw()) for _ in range(2)]


@pytest.mark.parametrize("block", [1, 30, 1 << 21])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("m", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 100.0])
def test_value_and_gradient_are_the_references(
    monkeypatch: pytest.MonkeyPatch, block: int, n: int, m: float, temperature: float
) -> None:
    monkeypatch.setitem(blockwise._BLOCK, "cpu", block)
    views = _views(n)
    loss = partial(invaspread, temperature=temperature, negative_weight=m)
    got, grads = value_and_gradients(loss, views, 2)
    want, wanted = value_and_gradients(partial(reference, temperature=temperature, m=m), views, 2)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-11)


def test_hand_worked_value() -> None:
    # Two pairs, each of one direction, at right angles to the other pair; T = 1: the partner's
    # logit is 1, the two others' are 0. D = e + 2, and 1 - P of another is (e + 1) / (e + 2).
    z = torch.eye(2)
    want = -math.log(math.e / (math.e + 2)) - 2 * math.log((math.e + 1) / (math.e + 2))
    assert invaspread(z, z, 1.0).item() == pytest.approx(want, rel=1e-6)
    # m = 3: D = e + 6, 1 - P is (e + 5) / (e + 6), three times.
    want = -math.log(math.e / (math.e + 6)) - 6 * math.log((math.e + 5) / (math.e + 6))
    assert invaspread(z, z, 1.0, 3.0).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("m", [1.0, 2.0])
@pytest.mark.parametrize("temperature", [0.001, 0.02, 100.0])
def test_extreme_temperatures_in_float32(temperature: float, m: float) -> None:
    views = _views(20)
    loss = partial(invaspread, temperature=temperature, negative_weight=m)
    got, grads = value_and_gradients(loss, [x.float() for x in views], 2)
    want, wanted = value_and_gradients(partial(reference, temperature=temperature, m=m), views, 2)
    assert_close_to_golden(got, want, 1e-4)
    for grad, right in zip(grads, wanted, strict=True):
        assert_close_to_golden(grad, right, 5e-3 if temperature < 0.01 else 1e-4)


def test_a_view_that_is_another_images_stays_finite() -> None:
    # P of the first anchor's wrong key is 1 - 2e-22 where the official code takes log(0).
    f1 = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    f2 = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    value, grads = value_and_gradients(partial(invaspread, temperature=0.02), [f1, f2], 2)
    want = reference(f1.double(), f2.double(), 0.02)
    assert value.item() == pytest.approx(want.item(), rel=1e-5)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    views = [x.to(dtype) for x in _views(9)]
    loss = partial(invaspread, temperature=0.05)
    want, wanted = value_and_gradients(loss, [x.float() for x in views], 2)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            got, grads = value_and_gradients(loss, views, 2)
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        for grad, right in zip(grads, wanted, strict=True):
            assert torch.equal(grad, right.to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("m", [1.0, 2.0])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], m: float) -> None:
    loss = partial(invaspread, temperature=0.1, negative_weight=m)
    assert_ranks_equal_one(ranks, loss, _views(6), 2, counts)


def test_without_gradient_the_value_is_the_same() -> None:
    views = _views(6)
    with torch.no_grad():
        value = invaspread(*views, 0.1)
    assert not value.requires_grad
    loss = partial(invaspread, temperature=0.1)
    assert torch.equal(value, value_and_gradients(loss, views, 2)[0])


def test_the_whole_similarity_matrix_is_never_formed() -> None:
    n = 2000
    with Largest() as largest:
        views = _views(n, 2, torch.float32)
        value_and_gradients(partial(invaspread, temperature=0.1), views, 2)
    assert largest.numel <= 1 << 21 < (2 * n) ** 2 / 7


def _on_fake_cuda(m: float) -> Tensor:
    views = [torch.randn(500, 8, device=DEVICE, requires_grad=True) for _ in range(2)]
    return invaspread(*views, 0.1, m)


@pytest.mark.parametrize("m", [1.0, 2.0])
def test_no_host_synchronization(m: float) -> None:
    assert syncs(_on_fake_cuda, m) == []


@pytest.mark.parametrize("m", [1.0, 2.0])
def test_compiles_without_graph_break(m: float) -> None:
    loss = partial(invaspread, temperature=0.1, negative_weight=m)
    assert_compiles(loss, _views(6), 2)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 2), (4, 2)), (0.1, 1.0), r"\(3, 2\) and \(4, 2\)"),
        (((3,), (3,)), (0.1, 1.0), r"\(3,\) and \(3,\)"),
        (((3, 2), (3, 2)), (0.0, 1.0), "above 0, got 0.0"),
        (((3, 2), (3, 2)), (0.1, 0.5), "at least 1, got 0.5"),
    ],
)
def test_wrong_input_is_named(shapes: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invaspread(torch.ones(shapes[0]), torch.ones(shapes[1]), *options)


@pytest.mark.parametrize("name", ["negM1", "negMgt1"])
def test_golden(name: str) -> None:
    golden = load(f"invaspread/batch_criterion_{name}.npz")
    hyper = golden["meta"]["hyper"]
    raw = torch.from_numpy(golden["x_raw"]).requires_grad_()
    x = F.normalize(raw)
    x.retain_grad()
    assert len(x) == 2 * hyper["B"]
    value = invaspread(*x.chunk(2), hyper["T"], hyper["negM"])
    value.backward()
    assert_close_to_golden(x, golden["x"])
    assert_close_to_golden(value, golden["loss"])
    assert_close_to_golden(x.grad, golden["grad_x"])
    assert_close_to_golden(raw.grad, golden["grad_raw"])
