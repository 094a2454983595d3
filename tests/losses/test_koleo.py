"""KoLeo against the authors' arrays, a slow reference, and itself on several ranks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslzoo.losses import koleo
from sslzoo.losses.koleo import _nearest
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, Largest, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def reference(x: Tensor) -> Tensor:
    """Row by row; also the authors' form, if x is what one rank has."""
    rows = [row / row.norm() for row in x]
    terms = []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        nearest = max(others, key=lambda other: (row @ other).item())
        terms.append(((row - nearest + 1e-8).norm() + 1e-8).log())
    return -torch.stack(terms).mean()


def _rows(n: int = 6) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def test_equals_the_authors() -> None:
    z = load("dinov2/koleo.npz")
    value, (grad,) = value_and_gradients(koleo, [torch.tensor(z["x"])], 1)
    assert_close_to_golden(value, z["loss"], 1e-6)
    assert_close_to_golden(grad, z["grad"], 1e-5)
    x = torch.nn.functional.normalize(torch.tensor(z["x"]), dim=1)
    assert torch.equal(_nearest(x, x, 0), torch.tensor(z["nn_index"]))


def test_value_and_gradient_are_the_references() -> None:
    got, want = (value_and_gradients(loss, [_rows()], 1) for loss in (koleo, reference))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_hand_worked_value() -> None:
    # On the unit circle at 0, 60 and 180 degrees: distances 1, 1 and the square root of 3.
    angles = torch.tensor([0.0, math.pi / 3, math.pi]).double()
    x = torch.stack((angles.cos(), angles.sin()), dim=1) * torch.tensor([[1.0], [2.0], [3.0]])
    assert koleo(x).item() == pytest.approx(-math.log(3) / 6, abs=1e-6)


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, koleo, [_rows()], 1, counts)


def test_equal_rows_have_a_finite_loss_and_gradient() -> None:
    value, (grad,) = value_and_gradients(koleo, [torch.ones(3, 4)], 1)
    assert value.isfinite()
    assert grad.isfinite().all()


def test_half_rows_are_computed_in_float32() -> None:
    half = _rows().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = koleo(half)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, koleo(half.float()), rtol=1e-5, atol=0)


def test_similarities_exist_in_blocks_alone() -> None:
    with Largest() as largest:
        koleo(torch.randn(4096, 8))
    assert largest.numel < 4096 * 4096 // 4


def test_a_step_has_no_sync() -> None:
    assert syncs(lambda: koleo(torch.randn(6, 5, device=DEVICE, requires_grad=True))) == []


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"x must be \(n, D\), got \(2, 3, 4\)"):
        koleo(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        koleo(torch.zeros(1, 4))
