"""W-MSE: a slow reference, the authors' arrays, ranks, and singular covariances."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.losses import regression, w_mse, whiten
from sslzoo.random import run_keys
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def reference(
    z: Tensor, permutations: Tensor, size: int, eps: float = 0.0, normalize: bool = True
) -> Tensor:
    """Iteration by iteration and pair by pair, with an explicit inverse."""
    z, n, views, dim = z.double(), *z.shape
    losses = []
    for order in permutations:
        white = torch.zeros_like(z)
        for start in range(0, n, size):
            rows = order[start : start + size]
            for v in range(views):
                x = z[rows, v]
                cov = torch.cov(x.T).reshape(dim, dim)
                factor = torch.linalg.cholesky((1 - eps) * cov + eps * torch.eye(dim))
                done = white.clone()
                done[rows, v] = (x - x.mean(dim=0)) @ torch.linalg.inv(factor).T
                white = done
        for v in range(views):
            for u in range(v):
                a, b = white[:, u], white[:, v]
                cosines = F.cosine_similarity(a, b, dim=1)
                losses.append((2 - 2 * cosines).mean() if normalize else F.mse_loss(a, b))
    return torch.stack(losses).mean()


def _inputs(n: int = 6, views: int = 3, dim: int = 2, iterations: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, views, dim, generator=generator, dtype=torch.float64)
    keys = run_keys(0).fold_each("iteration", iterations)
    return z @ torch.tensor([[1.0, 0.4], [0.0, 2.0]], dtype=z.dtype) + 3, keys.permutation("", n)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("size", "eps"), [(3, 0.0), (6, 0.0), (2, 0.5)])
def test_value_and_gradient_are_the_references(size: int, eps: float, normalize: bool) -> None:
    z, order = _inputs()
    options = {"permutations": order, "eps": eps, "normalize": normalize}
    got = value_and_gradients(partial(w_mse, sub_batch_size=size, **options), [z], 1)
    wanted = value_and_gradients(partial(reference, size=size, **options), [z], 1)
    torch.testing.assert_close(got, wanted)


def test_hand_worked_value() -> None:
    """In one dimension (0, 0, 6) whitens to (-1, -1, 2) / sqrt 3, whatever its unit."""
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0], [6.0, -2.0]])[..., None]
    order = torch.tensor([[2, 0, 1]])
    assert w_mse(z, order, 3).item() == pytest.approx(4)  # every cosine is -1
    plain = w_mse(z, order, 3, normalize=False).item()
    assert plain == pytest.approx((4 + 4 + 16) / 3 / 3)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_whitened_rows_have_the_identity_as_covariance(eps: float) -> None:
    x = _inputs(n=20)[0].transpose(0, 1)  # (3, 20, 2)
    white = whiten(x, eps)
    torch.testing.assert_close(white.mean(dim=1), torch.zeros(3, 2).double())
    covariance = white.mT @ white / 19
    is_identity = torch.allclose(covariance, torch.eye(2).double().expand(3, 2, 2))
    assert is_identity == (eps == 0)


def test_a_singular_covariance_is_not_a_number() -> None:
    """Of its own entry alone: no number is made up."""
    x = torch.randn(2, 5, 3)
    x[1, :, 2] = x[1, :, 1]
    x[1, :, 1] = 0
    x[1, :, 2] = 0
    white = whiten(x)
    assert white[0].isfinite().all()
    assert white[1].isnan().all()
    assert whiten(x, eps=0.01).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, order = _inputs()
    loss = partial(w_mse, permutations=order, sub_batch_size=3)
    leaf = z.to(dtype).requires_grad_()
    want, (wanted,) = value_and_gradients(loss, [leaf.detach().float()], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(leaf)
    got.backward()  # outside, as a Trainer does: products in it follow autocast
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(leaf.grad, wanted.to(dtype))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], normalize: bool) -> None:
    """Also where a rank has no sub-batch of its own."""
    z, order = _inputs(iterations=1)
    loss = partial(w_mse, permutations=order, sub_batch_size=3, normalize=normalize)
    assert_ranks_equal_one(ranks, loss, [z], 1, counts)


def _on_fake_cuda() -> Tensor:
    z = torch.randn(4, 2, 1, device=DEVICE, requires_grad=True)
    return w_mse(z, run_keys(0, device=DEVICE).permutation("", 4), 2)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    z, order = _inputs()
    assert_compiles(partial(w_mse, sub_batch_size=3), [z, order], 1)


def test_wrong_input_is_named() -> None:
    z, order = _inputs()
    with pytest.raises(ValueError, match=r"at least two views.*\(6, 1, 2\) and \(2, 6\)"):
        w_mse(z[:, :1], order, 3)
    with pytest.raises(ValueError, match=r"\(I, N\), got \(6, 3, 2\) and \(2, 5\)"):
        w_mse(z, order[:, :5], 3)
    with pytest.raises(ValueError, match=r"batch must be a multiple of sub_batch_size 4, got 6"):
        w_mse(z, order, 4)
    with pytest.raises(ValueError, match=r"sub_batch_size must be above 2, .*got 2"):
        w_mse(z, order, 2)
    with pytest.raises(ValueError, match=r"sub_batch_size must be at least 2, .*got 1"):
        w_mse(z, order, 1, eps=0.5)
    with pytest.raises(ValueError, match=r"eps must be in \[0, 1\), got 2"):
        w_mse(z, order, 3, eps=2.0)


@pytest.mark.parametrize(("name", "eps"), [("eps0", 0), ("eps", 1)])
def test_whitening_equals_the_authors(name: str, eps: int) -> None:
    z = load("wmse/whitening.npz")
    x = torch.tensor(z["x"], requires_grad=True)
    out = whiten(x, z["meta"]["hyper"]["eps"][eps])
    (out * torch.tensor(z["cotangent"])).sum().backward()
    assert_close_to_golden(out, z[f"out_{name}"], 2e-6)
    assert_close_to_golden(x.grad, z[f"grad_{name}"], 5e-6)


def test_distance_equals_the_authors() -> None:
    """It is BYOL's regression with a gradient on both sides."""
    z = load("wmse/norm_mse_loss.npz")
    pair = [torch.tensor(z["x0"]), torch.tensor(z["x1"])]
    value, grads = value_and_gradients(regression, pair, 2)
    assert_close_to_golden(value, z["loss"], 1e-6)
    for grad, name in zip(grads, ("grad_x0", "grad_x1"), strict=True):
        assert_close_to_golden(grad, z[name], 2e-6)


def test_running_statistics_equal_the_authors() -> None:
    """Their tracked form, with eps, which W-MSE does not use: from the pieces of ours."""
    z = load("wmse/whitening.npz")
    weight, (_, eps) = z["meta"]["hyper"]["momentum"], z["meta"]["hyper"]["eps"]
    x, x_eval = torch.tensor(z["x"]), torch.tensor(z["x_eval"])
    identity = torch.eye(x.shape[1])
    assert_close_to_golden(whiten(x, eps), z["out_tracked_train"], 2e-6)
    mean, covariance = weight * x.mean(dim=0), identity.lerp(torch.cov(x.T), weight)
    assert_close_to_golden(mean[None, :, None, None], z["tracked:running_mean"], 1e-6)
    assert_close_to_golden(covariance, z["tracked:running_variance"], 1e-6)
    factor = torch.linalg.cholesky(covariance.lerp(identity, eps))
    out = torch.linalg.solve_triangular(factor, (x_eval - mean).T, upper=False).T
    assert_close_to_golden(out, z["out_tracked_eval"], 2e-6)
