"""TiCo's terms against a float64 reference, the arrays of both codes, and on ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import tico
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def total(
    z1: Tensor, z2: Tensor, covariance: Tensor, beta: float = 0.9, rho: float = 8.0
) -> Tensor:
    terms = tico(z1, z2, covariance, beta)
    return terms.invariance + rho * terms.contrast


def reference(
    z1: Tensor, z2: Tensor, covariance: Tensor, beta: float = 0.9, rho: float = 8.0
) -> Tensor:
    """Sample by sample, with the covariance entry by entry."""
    z1, z2, n, dim = z1.double(), z2.double(), len(z1), z1.shape[1]
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        for a in range(dim):
            loss = loss - z1[i, a] * z2[i, a] / n
            for b in range(dim):
                moment = sum(z1[j, a] * z1[j, b] for j in range(n)) / n
                c = beta * covariance[a, b].double() + (1 - beta) * moment
                loss = loss + rho * z1[i, a] * c * z1[i, b] / n
    return loss


def _inputs(n: int = 6, dim: int = 4) -> tuple[list[Tensor], Tensor]:
    """Normalized projections of both views, and an earlier covariance, asymmetric on purpose."""
    generator = torch.Generator().manual_seed(n)
    z1, z2 = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    covariance = torch.rand(dim, dim, generator=generator, dtype=torch.float64)
    return [F.normalize(z1, dim=1), F.normalize(z2, dim=1)], covariance


@pytest.mark.parametrize("rho", [8.0, 0.0, 1e4])
@pytest.mark.parametrize("beta", [0.9, 0.0, 1.0])
def test_value_and_gradient_are_the_references(beta: float, rho: float) -> None:
    pair, covariance = _inputs()
    options = {"covariance": covariance, "beta": beta, "rho": rho}
    got = value_and_gradients(partial(total, **options), pair, 2)
    torch.testing.assert_close(got, value_and_gradients(partial(reference, **options), pair, 2))


def test_hand_worked_value() -> None:
    z1 = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    z2 = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    terms = tico(z1, z2, covariance=torch.eye(2), beta=0.5)
    assert terms.invariance.item() == pytest.approx(-(0 + 1) / 2)
    torch.testing.assert_close(terms.second_moment, torch.tensor([[0.68, 0.24], [0.24, 0.32]]))
    # C = (I + B) / 2 = [[0.84, 0.12], [0.12, 0.66]]
    # z1^T C z1: 0.84 and 0.36 * 0.84 + 2 * 0.48 * 0.12 + 0.64 * 0.66
    assert terms.contrast.item() == pytest.approx((0.84 + 0.3024 + 0.1152 + 0.4224) / 2)


def test_zero_rows_stay_finite() -> None:
    z = torch.zeros(3, 4)
    value, grads = value_and_gradients(partial(total, covariance=torch.eye(4)), [z, z], 2)
    assert value == 0
    assert all(torch.equal(grad, z) for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    pair, covariance = _inputs()
    loss = partial(total, covariance=covariance.float())
    leaves = [x.to(dtype).requires_grad_() for x in pair]
    want, wanted = value_and_gradients(loss, [x.detach().float() for x in leaves], 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(*leaves)
    got.backward()  # outside, as a Trainer does: products in it follow autocast
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    for leaf, right in zip(leaves, wanted, strict=True):
        assert torch.equal(leaf.grad, right.to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    pair, covariance = _inputs()
    assert_ranks_equal_one(ranks, partial(total, covariance=covariance), pair, 2, counts)


def _moment(rank: int, z: Tensor, counts: tuple[int, ...]) -> Tensor:
    mine = z.split(counts)[rank]
    return tico(mine, mine, torch.zeros(4, 4)).second_moment


@pytest.mark.parametrize("counts", COUNTS)
def test_every_rank_has_the_moment_of_the_global_batch(
    ranks: Ranks, counts: tuple[int, ...]
) -> None:
    z = _inputs()[0][0]
    for moment in ranks(len(counts), _moment, z, counts):
        torch.testing.assert_close(moment, z.T @ z / 6, rtol=1e-12, atol=1e-12)


def _on_fake_cuda() -> Tensor:
    z = [torch.randn(4, 3, device=DEVICE, requires_grad=True) for _ in range(2)]
    return total(z[0], z[1], torch.eye(3, device=DEVICE))


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    pair, covariance = _inputs()
    assert_compiles(total, [*pair, covariance], 2)


def test_wrong_input_is_named() -> None:
    z, covariance = torch.ones(2, 3), torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"z1 and z2 .*\(2, 3\) and \(2, 4\)"):
        tico(z, torch.ones(2, 4), covariance)
    with pytest.raises(ValueError, match=r"covariance .*\(3, 4\) and \(2, 3\)"):
        tico(z, z, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\], got 1.5"):
        tico(z, z, covariance, beta=1.5)


def test_three_steps_equal_sayannags() -> None:
    z = load("tico/loss_sayannag.npz")
    hyper = z["meta"]["hyper"]
    covariance = torch.zeros(hyper["D"], hyper["D"])
    for k in range(3):
        x1, x2 = (torch.tensor(z[name][k], requires_grad=True) for name in ("x1", "x2"))
        terms = tico(l2_normalize(x1), l2_normalize(x2), covariance, hyper["beta"])
        loss = terms.invariance + hyper["rho"] * terms.contrast
        loss.backward()
        covariance = covariance.lerp(terms.second_moment.detach(), 1 - hyper["beta"])
        assert_close_to_golden(loss, z["loss"][k], 1e-6)
        assert_close_to_golden(x1.grad, z["grad_x1"][k], 2e-6)
        assert_close_to_golden(x2.grad, z["grad_x2"][k], 2e-6)
        assert_close_to_golden(covariance, z["C"][k], 1e-6)


def _lightly(rank: int, z: dict[str, Any], world: int) -> list[dict[str, Tensor]]:
    """lightly's three steps: all of C_t is a constant, which is beta = 1 with C_t itself."""
    hyper = z["meta"]["hyper"]
    covariance = torch.zeros(hyper["D"], hyper["D"])
    steps = []
    for k in range(3):
        whole = (torch.tensor(z[name][k]) for name in ("x1", "x2"))
        x1, x2 = (x.chunk(world)[rank].clone().requires_grad_() for x in whole)
        z1, z2 = l2_normalize(x1), l2_normalize(x2)
        moment = tico(z1.detach(), z2, covariance).second_moment
        covariance = covariance.lerp(moment, 1 - hyper["beta"])
        terms = tico(z1, z2, covariance, beta=1.0)
        loss = 1 + terms.invariance + hyper["rho"] * terms.contrast
        loss.backward()
        assert x1.grad is not None
        assert x2.grad is not None
        got = {"loss": loss.detach(), "grad_x1": x1.grad, "grad_x2": x2.grad, "C": covariance}
        steps.append(got)
    return steps


@pytest.mark.parametrize("world", [1, 2])
def test_three_steps_equal_lightlys(ranks: Ranks, world: int) -> None:
    """Gradients as each rank has them, W times those of one process before DDP's mean."""
    z = load(f"tico/loss_lightly_{world}rank.npz")
    results = ranks(world, _lightly, z, world)
    for k in range(3):
        mean = torch.stack([steps[k]["loss"] for steps in results]).mean()
        for rank, steps in enumerate(results):
            assert_close_to_golden(mean, z["loss"][rank, k], 1e-6)  # theirs is equal on all ranks
            for name in ("grad_x1", "grad_x2", "C"):
                assert_close_to_golden(steps[k][name], z[name][rank, k], 2e-6)
