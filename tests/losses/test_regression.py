"""BYOL's regression loss against a float64 reference, the official arrays, and on ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslzoo.losses import regression
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def reference(p: Tensor, z: Tensor) -> Tensor:
    cosines = [(a @ b) / (a.norm() * b.norm()) for a, b in zip(p.double(), z.double(), strict=True)]
    return (2 - 2 * torch.stack(cosines)).mean()


def _pair(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_value_and_gradient_are_the_references() -> None:
    got = value_and_gradients(regression, _pair(), 1)
    torch.testing.assert_close(got, value_and_gradients(reference, _pair(), 1))


def test_hand_worked_value() -> None:
    p = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    z = torch.tensor([[0.0, 2.0], [5.0, 5.0]])
    assert regression(p, z).item() == pytest.approx((2 + 0) / 2, abs=1e-6)


def test_zero_rows_stay_finite() -> None:
    value, grads = value_and_gradients(regression, [torch.zeros(2, 3), torch.ones(2, 3)], 1)
    assert value.item() == pytest.approx(1)
    assert grads[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    pair = [x.to(dtype) for x in _pair()]
    want, wanted = value_and_gradients(regression, [x.float() for x in pair], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(regression, pair, 1)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(grads[0], wanted[0].to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, regression, _pair(), 1, counts)


def _on_fake_cuda() -> Tensor:
    return regression(
        torch.randn(4, 3, device=DEVICE, requires_grad=True), torch.randn(4, 3, device=DEVICE)
    )


def test_no_host_synchronisation() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    compiled = torch.compile(regression, fullgraph=True, backend="aot_eager")
    got = value_and_gradients(compiled, _pair(), 1)
    torch.testing.assert_close(got, value_and_gradients(regression, _pair(), 1))


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        regression(torch.ones(2, 3), torch.ones(2, 4))


def test_golden() -> None:
    golden = load("byol/regression_loss.npz")
    x = torch.from_numpy(golden["x"]).requires_grad_()
    y = torch.from_numpy(golden["y"])
    value = regression(x, y)
    value.backward()
    assert_close_to_golden(x.grad, golden["grad_x"])
    assert_close_to_golden(value, golden["loss"].mean())
    each = [regression(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    assert_close_to_golden(torch.stack(each), golden["loss"])
