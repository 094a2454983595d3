"""Barlow Twins' loss against a float64 reference, the official arrays, and on ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.backbones import GlobalBatchNorm
from sslzoo.losses import barlow_twins
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def reference(z1: Tensor, z2: Tensor, weight: float = 0.0051) -> Tensor:
    """Entry by entry of the correlation matrix."""
    n, dim = z1.shape
    loss = torch.zeros((), dtype=torch.float64)
    for a in range(dim):
        for b in range(dim):
            c = sum(z1[i, a].double() * z2[i, b].double() for i in range(n)) / n
            loss = loss + ((c - 1) ** 2 if a == b else weight * c**2)
    return loss


def _pair(dim: int = 4, n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(dim)
    pair = [torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [(x - x.mean(0)) / x.std(0, correction=0) for x in pair]


@pytest.mark.parametrize("weight", [0.0051, 0.0, 100.0])
@pytest.mark.parametrize("dim", [4, 14])
def test_value_and_gradient_are_the_references(dim: int, weight: float) -> None:
    got = value_and_gradients(partial(barlow_twins, off_diagonal_weight=weight), _pair(dim), 2)
    want = value_and_gradients(partial(reference, weight=weight), _pair(dim), 2)
    torch.testing.assert_close(got, want)


def test_hand_worked_value() -> None:
    z1 = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    z2 = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # c = [[1, -1], [1, -1]]
    assert barlow_twins(z1, z2, 0.5).item() == pytest.approx(0 + 4 + 0.5 * 2)


def test_the_gradients_scale_leaves_the_value() -> None:
    value, grads = value_and_gradients(barlow_twins, _pair(), 2)
    scaled, fewer = value_and_gradients(partial(barlow_twins, gradient_scale=1 / 32), _pair(), 2)
    assert torch.equal(scaled, value)
    torch.testing.assert_close(fewer, [grad / 32 for grad in grads])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [4, 14])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, dim: int) -> None:
    pair = [x.to(dtype) for x in _pair(dim)]
    want, wanted = value_and_gradients(barlow_twins, [x.float() for x in pair], 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(barlow_twins, pair, 2)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(grads, wanted, strict=True))


@pytest.mark.parametrize("dim", [4, 14])
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], dim: int) -> None:
    assert_ranks_equal_one(ranks, barlow_twins, _pair(dim), 2, counts)


def _on_fake_cuda(dim: int) -> Tensor:
    z = [torch.randn(4, dim, device=DEVICE, requires_grad=True) for _ in range(2)]
    return barlow_twins(z[0], z[1], gradient_scale=0.5)


@pytest.mark.parametrize("dim", [3, 9])
def test_no_host_synchronization(dim: int) -> None:
    assert syncs(_on_fake_cuda, dim) == []


@pytest.mark.parametrize("dim", [4, 14])
def test_compiles_without_graph_break(dim: int) -> None:
    assert_compiles(barlow_twins, _pair(dim), 2)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        barlow_twins(torch.ones(2, 3), torch.ones(2, 4))


def _official(rank: int, z: dict[str, Any], world: int, scale: float) -> dict[str, Any]:
    """The official forward of this rank: the shared norm, x before y, then the loss."""
    hyper = z["meta"]["hyper"]
    norm = GlobalBatchNorm(hyper["D"], affine=False, groups=hyper["world"])
    x, y = (torch.tensor(z[k]).chunk(world)[rank].clone().requires_grad_() for k in ("x", "y"))
    z1, z2 = norm(x), norm(y)
    loss = barlow_twins(z1, z2, hyper["lambd"], scale)
    loss.backward()
    return {"loss": loss.detach(), "x": x.grad, "y": y.grad, "norm": norm.state_dict()}


def test_equals_the_authors_on_one_rank() -> None:
    z = load("barlow/loss_1rank.npz")
    got = _official(0, z, 1, 1.0)
    assert_close_to_golden(got["loss"], z["loss"][0], 1e-6)
    assert_close_to_golden(got["x"], z["grad_x"][0])
    assert_close_to_golden(got["y"], z["grad_y"][0])
    for name, value in got["norm"].items():
        assert_close_to_golden(value, z[f"bn_after:bn.{name}"], 1e-6)


def test_gradient_scale_one_by_w_is_the_authors_on_w_ranks(ranks: Ranks) -> None:
    z = load("barlow/loss_2rank.npz")
    for rank, got in enumerate(ranks(2, _official, z, 2, 0.5)):
        assert_close_to_golden(got["loss"], z["loss"][rank], 1e-6)
        assert_close_to_golden(got["x"], z["grad_x"][rank])
        assert_close_to_golden(got["y"], z["grad_y"][rank])
    # One process, whose norm is in two groups: all gradients, without the scale.
    got = _official(0, z, 1, 1.0)
    assert_close_to_golden(got["x"], z["grad_x"].reshape(-1, z["grad_x"].shape[-1]))
