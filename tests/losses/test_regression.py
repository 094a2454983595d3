"""BYOL's and SimSiam's regression against float64 references, official arrays, and on ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sslzoo.losses import negative_cosine, regression
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def cosine(p: Tensor, z: Tensor) -> Tensor:
    """Mean cosine, pair by pair."""
    pairs = zip(p.double(), z.double(), strict=True)
    return torch.stack([(a @ b) / (a.norm() * b.norm()) for a, b in pairs]).mean()


REFERENCES: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    regression: lambda p, z: 2 - 2 * cosine(p, z),
    negative_cosine: lambda p, z: -cosine(p, z),
}


def both() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("loss", [regression, negative_cosine])


def _pair(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


@both()
def test_value_and_gradient_are_the_references(loss: Callable[..., Tensor]) -> None:
    got = value_and_gradients(loss, _pair(), 1)
    torch.testing.assert_close(got, value_and_gradients(REFERENCES[loss], _pair(), 1))


def test_hand_worked_value() -> None:
    p = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    z = torch.tensor([[0.0, 2.0], [5.0, 5.0]])
    assert regression(p, z).item() == pytest.approx((2 + 0) / 2, abs=1e-6)
    assert negative_cosine(p, z).item() == pytest.approx(-(0 + 1) / 2, abs=1e-6)


@both()
def test_zero_rows_stay_finite(loss: Callable[..., Tensor]) -> None:
    value, grads = value_and_gradients(loss, [torch.zeros(2, 3), torch.ones(2, 3)], 1)
    assert value.item() == pytest.approx(1 if loss is regression else 0)
    assert grads[0].isfinite().all()


@both()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(
    loss: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    pair = [x.to(dtype) for x in _pair()]
    want, wanted = value_and_gradients(loss, [x.float() for x in pair], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(loss, pair, 1)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(grads[0], wanted[0].to(dtype))


@both()
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(
    ranks: Ranks, loss: Callable[..., Tensor], counts: tuple[int, ...]
) -> None:
    assert_ranks_equal_one(ranks, loss, _pair(), 1, counts)


def _on_fake_cuda(loss: Callable[..., Tensor]) -> Tensor:
    p = torch.randn(4, 3, device=DEVICE, requires_grad=True)
    return loss(p, torch.randn(4, 3, device=DEVICE))


@both()
def test_no_host_synchronization(loss: Callable[..., Tensor]) -> None:
    assert syncs(_on_fake_cuda, loss) == []


@both()
def test_compiles_without_graph_break(loss: Callable[..., Tensor]) -> None:
    assert_compiles(loss, _pair(), 1)


@both()
def test_wrong_input_is_named(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"p and z .*\(2, 3\) and \(2, 4\)"):
        loss(torch.ones(2, 3), torch.ones(2, 4))


def test_equals_byol() -> None:
    golden = load("byol/regression_loss.npz")
    x = torch.from_numpy(golden["x"]).requires_grad_()
    y = torch.from_numpy(golden["y"])
    value = regression(x, y)
    value.backward()
    assert_close_to_golden(x.grad, golden["grad_x"])
    assert_close_to_golden(value, golden["loss"].mean())
    each = [regression(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    assert_close_to_golden(torch.stack(each), golden["loss"])


def test_equals_simsiam() -> None:
    golden = load("simsiam/loss.npz")
    p1, p2 = (torch.tensor(golden[name], requires_grad=True) for name in ("p1", "p2"))
    z1, z2 = (torch.from_numpy(golden[name]) for name in ("z1", "z2"))
    value = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
    value.backward()
    assert_close_to_golden(value, golden["loss"], 1e-6)
    assert_close_to_golden(p1.grad, golden["grad_p1"], 1e-5)
    assert_close_to_golden(p2.grad, golden["grad_p2"], 1e-5)
