"""SIGReg and the invariance of LeJEPA: a slow reference, the authors' arrays, and ranks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslzoo.losses import random_directions, sigreg, view_invariance
from sslzoo.losses.sigreg import _BLOCK, knots
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

LOSSES = {"all views": view_invariance, "global views": partial(view_invariance, num_global=2)}


def reference(z: Tensor, directions: Tensor, t_max: float = 3.0, num_knots: int = 17) -> Tensor:
    """The integral knot by knot, on both sides of zero."""
    z, directions = z.double(), directions.double()
    loss, step = torch.zeros((), dtype=torch.float64), t_max / (num_knots - 1)
    for v in range(z.shape[1]):
        for a in directions.T:
            x = z[:, v] @ a
            for k in range(1 - num_knots, num_knots):
                t = torch.tensor(k * step, dtype=torch.float64)
                phi = torch.exp(-t * t / 2)
                error = ((t * x).cos().mean() - phi) ** 2 + (t * x).sin().mean() ** 2
                ends = 0.5 if abs(k) == num_knots - 1 else 1.0
                loss = loss + len(x) * ends * step * phi * error
    return loss / (z.shape[1] * directions.shape[1])


def _inputs(n: int = 6, views: int = 3, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Embeddings whose mean and deviation are not those of a standard normal, and directions."""
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, views, dim, generator=generator, dtype=torch.float64)
    return z * torch.linspace(0.3, 2, dim) + 0.5, random_directions(dim, 5, 0, 0).double()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e2])
@pytest.mark.parametrize(("t_max", "num_knots"), [(3.0, 17), (5.0, 8), (1.0, 2)])
def test_value_and_gradient_are_the_references(scale: float, t_max: float, num_knots: int) -> None:
    z, directions = _inputs()
    options = {"directions": directions, "t_max": t_max, "num_knots": num_knots}
    got = value_and_gradients(partial(sigreg, **options), [scale * z], 1)
    torch.testing.assert_close(
        got, value_and_gradients(partial(reference, **options), [scale * z], 1)
    )


def test_hand_worked_value() -> None:
    z = torch.tensor([[[-1.0]], [[1.0]]])
    value = sigreg(z, torch.ones(1, 1), t_max=2.0, num_knots=2)  # the knot 0 has no error
    phi = math.exp(-2)
    assert value.item() == pytest.approx(2 * (math.cos(2) - phi) ** 2 * phi * 2)  # N = 2, dt = 2


def test_a_standard_normal_has_the_least_value() -> None:
    quantiles = (torch.arange(1, 200) / 200).double()
    z = 2**0.5 * torch.erfinv(2 * quantiles - 1)[:, None, None]
    one = torch.ones(1, 1)
    at_rest = sigreg(z, one)
    assert at_rest < 0.02
    for other in (z + 0.5, 2 * z, z / 2, torch.zeros_like(z), z.sign()):
        assert sigreg(other, one) > 50 * at_rest


def test_constant_embeddings_have_finite_gradients() -> None:
    value, (grad,) = value_and_gradients(
        partial(sigreg, directions=_inputs()[1].float()), [torch.zeros(4, 2, 4)], 1
    )
    assert value.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize("entries", [1, 40])
def test_blocks_of_directions_do_not_matter(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z, directions = _inputs()
    loss = partial(sigreg, directions=directions)
    wanted = value_and_gradients(loss, [z], 1)
    monkeypatch.setitem(_BLOCK, "cpu", entries)
    torch.testing.assert_close(value_and_gradients(loss, [z], 1), wanted)


def test_no_tensor_has_all_directions_or_knots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_BLOCK, "cpu", 64 * 8)
    z, directions = torch.randn(64, 2, 4), random_directions(4, 100, 0, 0)
    with Largest() as largest:
        value_and_gradients(partial(sigreg, directions=directions), [z], 1)
    assert largest.numel <= 2 * 64 * 8  # real and imaginary parts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, directions = _inputs()
    for loss in (partial(sigreg, directions=directions.float()), *LOSSES.values()):
        leaf = z.to(dtype).requires_grad_()
        want, (wanted,) = value_and_gradients(loss, [leaf.detach().float()], 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = loss(leaf)
        got.backward()  # outside, as a Trainer does
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        assert torch.equal(leaf.grad, wanted.to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    z, directions = _inputs()
    loss = partial(sigreg, directions=directions)
    assert_ranks_equal_one(ranks, loss, [z], 1, counts)


@pytest.mark.parametrize("counts", COUNTS[1:2])
@pytest.mark.parametrize("name", LOSSES)
def test_invariance_on_ranks_equals_one(ranks: Ranks, counts: tuple[int, ...], name: str) -> None:
    assert_ranks_equal_one(ranks, LOSSES[name], [_inputs()[0]], 1, counts)


def test_invariance_has_its_gradient_through_the_center() -> None:
    z = torch.tensor([[[0.0], [4.0]]])
    value, (grad,) = value_and_gradients(partial(view_invariance, num_global=1), [z], 1)
    assert value == 8  # (0 + 16) / 2
    assert grad.flatten().tolist() == [-4, 4]


def test_directions_depend_on_seed_and_step_alone() -> None:
    first = random_directions(6, 9, seed=0, step=3)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(9))
    assert torch.equal(first, random_directions(6, 9, seed=0, step=3))
    for seed, step in ((1, 3), (0, 4)):
        assert not torch.isclose(first, random_directions(6, 9, seed, step)).any()
    many = random_directions(3, 20_000, 0, 0)
    torch.testing.assert_close(many @ many.T / 20_000, torch.eye(3) / 3, rtol=0, atol=0.02)
    torch.testing.assert_close(many.mean(dim=1), torch.zeros(3), rtol=0, atol=0.02)


def _on_fake_cuda() -> Tensor:
    z = torch.randn(4, 2, 3, device=DEVICE, requires_grad=True)
    return sigreg(z, random_directions(3, 5, 0, 0, DEVICE)) + view_invariance(z)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    assert_compiles(sigreg, _inputs(), 1)


def test_wrong_input_is_named() -> None:
    z, directions = torch.ones(2, 3, 4), torch.ones(4, 5)
    with pytest.raises(ValueError, match=r"z and directions .*\(2, 3\) and \(4, 5\)"):
        sigreg(z[..., 0], directions)
    with pytest.raises(ValueError, match=r"\(n, V, D\) and \(D, S\), got \(2, 3, 4\) and \(5, 4\)"):
        sigreg(z, directions.T)
    with pytest.raises(ValueError, match=r"t_max must be above 0, got 0"):
        sigreg(z, directions, t_max=0.0)
    with pytest.raises(ValueError, match=r"num_knots must be at least 2, got 1"):
        sigreg(z, directions, num_knots=1)
    with pytest.raises(ValueError, match=r"num_global must be in 1..3, the views, got 4"):
        view_invariance(z, 4)
    with pytest.raises(ValueError, match=r"z must be \(n, V, D\), got \(4, 5\)"):
        view_invariance(directions)


def columns(x: Tensor, t_max: float, num_knots: int) -> Tensor:
    """The statistic of each column of x (n, K), (K,)."""
    return torch.stack([sigreg(c[:, None, None], torch.ones(1, 1), t_max, num_knots)
                        for c in x.unbind(dim=-1)])  # fmt: skip


@pytest.mark.parametrize(("suffix", "kind"), [("", ""), ("_alt", "_alt")])
def test_statistic_equals_the_authors(suffix: str, kind: str) -> None:
    z = load("lejepa/epps_pulley.npz")
    hyper = z["meta"]["hyper"]
    settings = hyper[f"t_max{kind}"], hyper[f"n_points{kind}"]
    for got, name in zip(knots(*settings), ("t", "phi", "weights"), strict=True):
        assert_close_to_golden(got, z[name + suffix], 5e-7)
    x = torch.tensor(z["x"], requires_grad=True)
    statistics = columns(x, *settings)
    (statistics * torch.tensor(z[f"upstream{suffix}"])).sum().backward()
    assert_close_to_golden(statistics, z[f"stat{suffix}"], 2e-6)
    assert_close_to_golden(x.grad, z[f"grad{suffix}"], 5e-6)
    if not suffix:
        batched = torch.stack([columns(view, *settings) for view in torch.tensor(z["x_batched"])])
        assert_close_to_golden(batched, z["stat_batched"], 2e-6)


def _sliced(rank: int, z: dict[str, Any], world: int, suffix: str) -> tuple[Tensor, ...]:
    hyper = z["meta"]["hyper"]
    settings = hyper[f"t_max{suffix}"], hyper[f"n_points{suffix}"]
    x = torch.tensor(z["x"]).chunk(world)[rank].clone().requires_grad_()
    directions = torch.tensor(z[f"A{suffix}"])
    loss = sigreg(x[:, None], directions, *settings)
    loss.backward()
    assert x.grad is not None
    with torch.no_grad():
        each = [sigreg(x[:, None], a, *settings) for a in directions.split(1, dim=1)]
    return loss.detach(), x.grad, torch.stack(each)


@pytest.mark.parametrize("suffix", ["", "_alt"])
@pytest.mark.parametrize("world", [1, 2])
def test_sliced_statistics_equal_the_authors(ranks: Ranks, world: int, suffix: str) -> None:
    """Gradients as each rank has them, W times those of one process before DDP's mean."""
    z = load(f"lejepa/sigreg_{world}rank.npz")
    for rank, (loss, grad, statistics) in enumerate(ranks(world, _sliced, z, world, suffix)):
        assert_close_to_golden(loss, z[f"loss{suffix}"][rank], 1e-6)
        assert_close_to_golden(grad, z[f"grad{suffix}"][rank], 5e-6)
        assert_close_to_golden(statistics, z[f"stats{suffix}"][rank], 2e-6)


def test_minimal_loss_equals_the_authors() -> None:
    """Both terms, their sum and its gradient; the arrays have the views first."""
    z = load("lejepa/minimal_loss.npz")
    weight, count = (z["meta"]["hyper"][name] for name in ("lamb", "knots"))
    for got, name in zip(knots(count=count), ("t", "phi", "weights"), strict=True):
        assert_close_to_golden(got, z[name], 5e-7)
    proj = torch.tensor(z["proj"]).transpose(0, 1).contiguous().requires_grad_()
    invariance, statistic = (
        view_invariance(proj),
        sigreg(proj, torch.tensor(z["A"]), num_knots=count),
    )
    loss = weight * statistic + (1 - weight) * invariance
    loss.backward()
    assert_close_to_golden(invariance, z["inv"], 1e-6)
    assert_close_to_golden(statistic, z["sigreg"], 1e-6)
    assert_close_to_golden(loss, z["loss"], 1e-6)
    assert proj.grad is not None
    assert_close_to_golden(proj.grad.transpose(0, 1), z["grad"], 5e-6)


@pytest.mark.parametrize("world", [1, 2])
def test_the_other_form_equals_stable_pretrainings(world: int) -> None:
    """All views as one sample, without 1 - lambda; their ranks each have their own statistic."""
    z = load(f"lejepa/spt_loss_{world}rank.npz")
    hyper = z["meta"]["hyper"]
    directions = torch.tensor(z["A"])
    for rank in range(world):
        proj = torch.tensor(z["proj"][rank]).transpose(0, 1).contiguous().requires_grad_()
        invariance = view_invariance(proj, hyper["n_global"])
        rows = proj.reshape(-1, 1, hyper["K"])
        statistic = world * sigreg(rows, directions, hyper["t_max"], hyper["n_points"])
        loss = invariance + hyper["lamb"] * statistic
        loss.backward()
        got = torch.stack([loss, invariance, statistic])
        assert_close_to_golden(got, z["loss"][rank], 1e-6)
        assert proj.grad is not None
        assert_close_to_golden(proj.grad.transpose(0, 1), z["grad"][rank], 5e-6)


def test_the_authors_directions_come_from_torchs_generator() -> None:
    """Ours are keyed instead; theirs are given to the loss above."""
    z = load("lejepa/sigreg_1rank.npz")
    step = z["meta"]["hyper"]["global_step"]
    drawn = torch.randn(z["A"].shape, generator=torch.Generator().manual_seed(step))
    assert_close_to_golden(drawn / drawn.norm(dim=0), z["A"], 1e-6)
    assert np.array_equal(z["step_after"], [step + 1])
