"""VICReg's terms against a float64 reference, the official arrays, and on ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.losses import vicreg
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def total(z1: Tensor, z2: Tensor) -> Tensor:
    """The paper's weights."""
    terms = vicreg(z1, z2)
    return 25 * terms.invariance + 25 * terms.variance + terms.covariance


def reference(z1: Tensor, z2: Tensor) -> Tensor:
    """Column by column."""
    z1, z2 = z1.double(), z2.double()
    dim, variance, covariance = z1.shape[1], [], []
    for z in (z1, z2):
        for a in range(dim):
            variance.append((1 - (z[:, a].var() + 1e-4).sqrt()).clamp_min(0))
            for b in range(dim):
                if a != b:
                    products = (z[:, a] - z[:, a].mean()) * (z[:, b] - z[:, b].mean())
                    covariance.append((products.sum() / (len(z) - 1)).square())
    invariance = ((z1 - z2) ** 2).mean()
    return 25 * (invariance + torch.stack(variance).mean()) + torch.stack(covariance).sum() / dim


def _pair(dim: int = 4, n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(dim)
    pair = [torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [x * torch.linspace(0.3, 1.5, dim) + 2 for x in pair]  # hinges on both sides


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("dim", [4, 14])
def test_value_and_gradient_are_the_references(dim: int, scale: float) -> None:
    pair = [scale * x for x in _pair(dim)]
    got = value_and_gradients(total, pair, 2)
    torch.testing.assert_close(got, value_and_gradients(reference, pair, 2))


def test_hand_worked_value() -> None:
    z1, z2 = torch.tensor([[2.0, 2.0], [-2.0, -2.0]]), torch.zeros(2, 2)
    terms = vicreg(z1, z2)  # variances 8 and 0, covariances 8 and 0
    assert terms.invariance.item() == pytest.approx(4)
    assert terms.variance.item() == pytest.approx((0 + 1 - 0.01) / 2)
    assert terms.covariance.item() == pytest.approx((8**2 + 8**2) / 2)


@pytest.mark.parametrize("dim", [3, 9])
def test_constant_embeddings_have_finite_gradients(dim: int) -> None:
    value, grads = value_and_gradients(total, [torch.ones(4, dim)] * 2, 2)
    assert value.item() == pytest.approx(25 * 0.99)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    pair = [x.to(dtype) for x in _pair()]
    want, wanted = value_and_gradients(total, [x.float() for x in pair], 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(total, pair, 2)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(grads, wanted, strict=True))


@pytest.mark.parametrize("dim", [4, 14])
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], dim: int) -> None:
    assert_ranks_equal_one(ranks, total, _pair(dim), 2, counts)


def _on_fake_cuda(dim: int) -> Tensor:
    z = [torch.randn(4, dim, device=DEVICE, requires_grad=True) for _ in range(2)]
    return total(z[0], z[1])


@pytest.mark.parametrize("dim", [3, 9])
def test_no_host_synchronization(dim: int) -> None:
    assert syncs(_on_fake_cuda, dim) == []


@pytest.mark.parametrize("dim", [4, 14])
def test_compiles_without_graph_break(dim: int) -> None:
    assert_compiles(total, _pair(dim), 2)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        vicreg(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"at least 2 samples .*, got 1"):
        vicreg(torch.ones(1, 3), torch.ones(1, 3))


def _official(rank: int, z: dict[str, Any], world: int) -> tuple[Tensor, Any, Any]:
    hyper = z["meta"]["hyper"]
    x, y = (torch.tensor(z[k]).chunk(world)[rank].clone().requires_grad_() for k in ("x", "y"))
    terms = vicreg(x, y)
    loss = hyper["sim"] * terms.invariance + hyper["std"] * terms.variance
    loss = loss + hyper["cov"] * terms.covariance
    loss.backward()
    return loss.detach(), x.grad, y.grad


@pytest.mark.parametrize("world", [1, 2])
def test_equals_the_authors(ranks: Ranks, world: int) -> None:
    z = load(f"vicreg/loss_{world}rank.npz")
    for rank, (loss, x, y) in enumerate(ranks(world, _official, z, world)):
        assert_close_to_golden(loss, z["loss"][rank], 1e-6)
        assert_close_to_golden(x, z["grad_x"][rank], 1e-5)
        assert_close_to_golden(y, z["grad_y"][rank], 1e-5)
