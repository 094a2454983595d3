"""Deep InfoMax's bounds and prior against slow references, the official arrays, and on ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from sslzoo.losses import (
    dim_donsker_varadhan,
    dim_fenchel_dual,
    dim_info_nce,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from sslzoo.losses.mutual_information import (
    NEGATIVE,
    POSITIVE,
    Measure,
)
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

MEASURES = [m for m in get_args(Measure) if m != "DV"]


def softplus(x: Tensor) -> Tensor:
    return torch.log1p((-x.abs()).exp()) + x.clamp_min(0)


EXPECTATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "JSD": (lambda u: math.log(2) - softplus(-u), lambda u: softplus(-u) + u - math.log(2)),
    "GAN": (lambda u: -softplus(-u), lambda u: softplus(-u) + u),
    "KL": (lambda u: u, lambda u: torch.exp(u - 1)),
    "RKL": (lambda u: -torch.exp(-u), lambda u: u - 1),
    "X2": (lambda u: u**2, lambda u: -0.5 * (u.abs() + 1) ** 2),
    "H2": (lambda u: 1 - torch.exp(-u), lambda u: torch.exp(u) - 1),
    "W1": (lambda u: u, lambda u: u),
}


def pairs(phi: Tensor, psi: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Scores of pairs of one image, and of two, one by one."""
    own, others = [], []
    for i in range(len(psi)):
        for j in range(len(phi)):
            for k in range(psi.shape[2]):
                for m in range(phi.shape[2]):
                    (own if i == j else others).append(psi[i, :, k] @ phi[j, :, m])
    return own, others


def slow_fenchel(phi: Tensor, psi: Tensor, measure: str = "JSD") -> Tensor:
    positive, negative = EXPECTATIONS[measure]
    own, others = pairs(phi, psi)
    return negative(torch.stack(others)).mean() - positive(torch.stack(own)).mean()


def slow_nce(phi: Tensor, psi: Tensor) -> Tensor:
    """Location by location: a softmax over the positive, the own images' -10 and the others."""
    terms = []
    for i in range(len(psi)):
        for k in range(psi.shape[2]):
            others = [
                psi[i, :, k] @ phi[j, :, m] if j != i else phi.new_tensor(-10.0)
                for j in range(len(phi))
                for m in range(phi.shape[2])
            ]
            for m in range(phi.shape[2]):
                logits = torch.stack([psi[i, :, k] @ phi[i, :, m], *others])
                terms.append(-logits.log_softmax(0)[0])
    return torch.stack(terms).mean()


def slow_dv(phi: Tensor, psi: Tensor) -> Tensor:
    own, others = pairs(phi, psi)
    return torch.stack(others).exp().mean().log() - torch.stack(own).mean()


BOUNDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    **{
        m: (partial(dim_fenchel_dual, measure=m), partial(slow_fenchel, measure=m))
        for m in MEASURES
    },
    "nce": (dim_info_nce, slow_nce),
    "dv": (dim_donsker_varadhan, slow_dv),
}


def every_bound() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", list(BOUNDS))


def encodings(n: int = 6, locations: int = 3, summaries: int = 2, scale: float = 0.7) -> Any:
    generator = torch.Generator().manual_seed(n)
    shapes = [(n, 4, locations), (n, 4, summaries)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) * scale for s in shapes]


@every_bound()
@pytest.mark.parametrize(("n", "locations", "summaries"), [(2, 1, 1), (5, 3, 1), (3, 2, 2)])
def test_value_and_gradient_are_the_references(
    name: str, n: int, locations: int, summaries: int
) -> None:
    fast, slow = BOUNDS[name]
    given = encodings(n, locations, summaries)
    got, want = value_and_gradients(fast, given, 2), value_and_gradients(slow, given, 2)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_hand_worked_values() -> None:
    # Two images, one location: scores 1 with themselves, 0 with each other.
    phi = torch.eye(2)[:, :, None]
    softplus = math.log1p(math.exp(-1))
    assert dim_fenchel_dual(phi, phi).item() == pytest.approx(softplus - math.log(2), rel=1e-5)
    nce = math.log(math.e + math.exp(-10) + 1) - 1
    assert dim_info_nce(phi, phi).item() == pytest.approx(nce, rel=1e-5)
    assert dim_donsker_varadhan(phi, phi).item() == pytest.approx(-1, rel=1e-6)


@every_bound()
def test_large_scores_stay_exact_in_float32(name: str) -> None:
    fast, slow = BOUNDS[name]
    scale = 2.0 if name in ("KL", "RKL", "H2") else 30.0  # their exp leaves float32 beyond
    given = encodings(scale=scale)
    got, grads = value_and_gradients(fast, [x.float() for x in given], 2)
    want, wanted = value_and_gradients(
        slow if name != "dv" else dim_donsker_varadhan, given, 2
    )  # the slow one's exp leaves float64
    assert_close_to_golden(got, want, 1e-4)
    for grad, right in zip(grads, wanted, strict=True):
        assert grad.isfinite().all()
        assert_close_to_golden(grad, right, 1e-4)


@pytest.mark.parametrize("measure", ["KL", "H2"])
def test_an_images_own_large_score_does_not_spoil_the_gradient(measure: Measure) -> None:
    phi = 100 * torch.eye(3)[:, :, None]  # exp(10,000) would be inf
    value, grads = value_and_gradients(partial(dim_fenchel_dual, measure=measure), [phi, phi], 2)
    assert value.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


@every_bound()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    given = [x.to(dtype) for x in encodings()]
    want, wanted = value_and_gradients(BOUNDS[name][0], [x.float() for x in given], 2)
    for autocast in (False, True):
        leaves = [x.clone().requires_grad_() for x in given]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            got = BOUNDS[name][0](*leaves)
        got.backward()  # outside, as a Trainer does: products in it follow autocast
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        for leaf, right in zip(leaves, wanted, strict=True):
            assert torch.equal(leaf.grad, right.to(dtype))


@pytest.mark.parametrize("name", ["JSD", "X2", "nce", "dv"])
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, name: str, counts: tuple[int, ...]) -> None:
    loss = {
        "JSD": dim_fenchel_dual,
        "X2": partial(dim_fenchel_dual, measure="X2"),
        "nce": dim_info_nce,
        "dv": dim_donsker_varadhan,
    }[name]
    assert_ranks_equal_one(ranks, loss, encodings(), 2, counts)


def _prior(real: Tensor, fake: Tensor, slope: Tensor) -> Tensor:
    return discriminator_loss(real, fake) + 2 * generator_loss(fake) + 3 * gradient_penalty(slope)


def _slow_prior(real: Tensor, fake: Tensor, slope: Tensor) -> Tensor:
    terms = [
        -r.sigmoid().log() - (1 - f.sigmoid()).log() - 2 * f.sigmoid().log() + 3 * (s @ s)
        for r, f, s in zip(real, fake, slope, strict=True)
    ]
    return torch.stack(terms).mean()


def _prior_inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in [(6,), (6,), (6, 3)]]


def test_prior_is_the_reference() -> None:
    got = value_and_gradients(_prior, _prior_inputs(), 3)
    torch.testing.assert_close(got, value_and_gradients(_slow_prior, _prior_inputs(), 3))


@pytest.mark.parametrize("counts", COUNTS)
def test_prior_on_ranks_equals_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, _prior, _prior_inputs(), 3, counts)


def test_prior_hand_worked_and_extreme() -> None:
    zero = torch.zeros(4)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(zero).item() == pytest.approx(math.log(2))
    assert gradient_penalty(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).item() == pytest.approx(13)
    sure = torch.tensor([200.0, -200.0])
    assert discriminator_loss(sure, sure).item() == pytest.approx(200)
    assert generator_loss(sure).item() == pytest.approx(100)
    half = [x.bfloat16() for x in _prior_inputs()]
    assert torch.equal(_prior(*half), _prior(*(x.float() for x in half)))


def _on_fake_cuda(name: str) -> Tensor:
    phi, psi = (torch.randn(5, 4, k, device=DEVICE, requires_grad=True) for k in (3, 1))
    return BOUNDS[name][0](phi, psi) + _prior(phi[:, 0, 0], psi[:, 0, 0], phi[:, :, 0])


@every_bound()
def test_no_host_synchronization(name: str) -> None:
    assert syncs(_on_fake_cuda, name) == []


@pytest.mark.parametrize("name", ["JSD", "nce"])  # the others are elementwise, as the first is
def test_compiles_without_graph_break(name: str) -> None:
    assert_compiles(BOUNDS[name][0], encodings(), 2)


def test_wrong_input_is_named() -> None:
    phi = torch.ones(3, 4, 2)
    for bound in (dim_fenchel_dual, dim_info_nce, dim_donsker_varadhan):
        with pytest.raises(ValueError, match=r"\(3, 4, 2\) and \(3, 5, 1\)"):
            bound(phi, torch.ones(3, 5, 1))
        with pytest.raises(ValueError, match=r"at least 2 images .*, got 1"):
            bound(phi[:1], phi[:1])
    with pytest.raises(ValueError, match="got 'TV'"):
        dim_fenchel_dual(phi, phi, "TV")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use dim_donsker_varadhan"):
        dim_fenchel_dual(phi, phi, "DV")
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        discriminator_loss(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        generator_loss(torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        gradient_penalty(torch.ones(3))


@pytest.mark.parametrize("measure", get_args(Measure))
def test_golden_expectations(measure: Measure) -> None:
    z = load("dim/expectations.npz")
    x = torch.from_numpy(z["x"])
    assert_close_to_golden(POSITIVE[measure](x), z[f"pos_{measure}"])
    assert_close_to_golden(NEGATIVE[measure](x), z[f"neg_{measure}"])


def assert_golden(z: dict[str, Any], loss: Callable[..., Tensor], name: str) -> None:
    given = [torch.from_numpy(z["l"]), torch.from_numpy(z["m"])]
    value, (grad_l, grad_m) = value_and_gradients(loss, given, 2)
    assert_close_to_golden(value, z[f"loss_{name}"])
    assert_close_to_golden(grad_l, z[f"grad_l_{name}"])
    assert_close_to_golden(grad_m, z[f"grad_m_{name}"])


@pytest.mark.parametrize("name", [*MEASURES, "nce"])
def test_golden_local(name: str) -> None:
    assert_golden(load("dim/local_losses.npz"), BOUNDS[name][0], name)


@pytest.mark.parametrize("name", ["JSD", "nce"])
def test_golden_global(name: str) -> None:
    assert_golden(load("dim/global_losses.npz"), BOUNDS[name][0], name)


def quirk(phi: Tensor, psi: Tensor) -> Tensor:
    """The official Donsker-Varadhan loss: a mask of images laid along the last two axes."""
    n = len(phi)
    u = torch.einsum("idk,jdm->ijmk", psi, phi)
    mask = torch.eye(n)
    positive = (u.mean(2) * mask).sum() / n
    masked = u - 100 * mask
    top = masked.max()
    total = ((1 - mask) * (masked - top).exp()).sum()
    return (total + 1e-6).log() + top - math.log(n * (n - 1)) - positive


def test_golden_donsker_varadhan_is_a_slip_and_ours_the_formula() -> None:
    z = load("dim/dv_quirk.npz")
    renamed = {key: f"{key}_DV" for key in ("loss", "grad_l", "grad_m")}
    assert_golden({renamed.get(key, key): value for key, value in z.items()}, quirk, "DV")
    given = [torch.from_numpy(z["l"]), torch.from_numpy(z["m"])]
    ours, _ = value_and_gradients(dim_donsker_varadhan, given, 2)
    formula = slow_dv(*(x.double() for x in given))
    assert_close_to_golden(ours, formula)
    assert ours.item() == pytest.approx(0.021, abs=5e-4)
    assert float(z["loss"]) == pytest.approx(3.230, abs=5e-4), "both stand under Deviations"
