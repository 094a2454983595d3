"""SupCon against a slow float64 reference, NT-Xent, and itself on several ranks."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor

from sslzoo.losses import nt_xent, sup_con
from tests.golden import assert_close_to_golden
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


def reference(z: Tensor, label: Tensor, temperature: float, base: float = 0.07) -> Tensor:
    """Anchor by anchor, in the words of the paper's equation 2; float64."""
    rows = z.double().flatten(0, 1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    y = label.repeat_interleave(z.shape[1]).tolist()
    terms = []
    for i in range(len(rows)):
        others = [k for k in range(len(rows)) if k != i]
        log_sum = torch.stack([rows[i] @ rows[k] / temperature for k in others]).logsumexp(0)
        positives = [k for k in others if y[k] == y[i]]
        log_p = [rows[i] @ rows[p] / temperature - log_sum for p in positives]
        terms.append(-torch.stack(log_p).mean())
    return torch.stack(terms).mean() * temperature / base


def _case(n: int = 6, views: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, views, 5, generator=generator, dtype=torch.float64) * 3
    return [z, torch.randint(3, (n,), generator=generator)]


@pytest.mark.parametrize("block", [1, 30, 1 << 21])
@pytest.mark.parametrize(("n", "views"), [(1, 2), (2, 3), (7, 2)])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 100.0])
def test_value_and_gradient_are_the_references(
    monkeypatch: pytest.MonkeyPatch, block: int, n: int, views: int, temperature: float
) -> None:
    monkeypatch.setitem(blockwise._BLOCK, "cpu", block)
    case = _case(n, views)
    got, grads = value_and_gradients(partial(sup_con, temperature=temperature), case, 1)
    want, wanted = value_and_gradients(partial(reference, temperature=temperature), case, 1)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-11)


def test_hand_worked_value() -> None:
    # Three samples of two equal views: two of one class at right angles, one of another opposite
    # to the first. T = 1, no factor. Logits of the first: own view 1, its class 0, 0, other -1, -1.
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])[:, None].expand(3, 2, 2)
    first = math.log(math.e + 2 + 2 / math.e) - 1 / 3
    second = math.log(math.e + 4) - 1 / 3
    third = math.log(math.e + 2 + 2 / math.e) - 1
    want = (first + second + third) / 3
    got = sup_con(z, torch.tensor([4, 4, 7]), 1.0, base_temperature=1.0)
    assert got.item() == pytest.approx(want, rel=1e-6)


def test_without_labels_it_is_simclrs() -> None:
    z, _ = _case()
    want = nt_xent(z[:, 0], z[:, 1], 0.1) * 0.1 / 0.07
    torch.testing.assert_close(sup_con(z, None, 0.1), want)
    torch.testing.assert_close(sup_con(z, torch.arange(6), 0.1), want)


@pytest.mark.parametrize("temperature", [0.001, 0.02, 100.0])
def test_extreme_temperatures_in_float32(temperature: float) -> None:
    z, y = _case(20)
    got, grads = value_and_gradients(partial(sup_con, temperature=temperature), [z.float(), y], 1)
    want, wanted = value_and_gradients(partial(reference, temperature=temperature), [z, y], 1)
    assert_close_to_golden(got, want, 1e-4)
    assert_close_to_golden(grads[0], wanted[0], 2e-3 if temperature < 0.01 else 1e-4)


def test_zero_rows_stay_finite() -> None:
    loss = partial(sup_con, temperature=0.1, base_temperature=0.1)
    value, grads = value_and_gradients(loss, [torch.zeros(3, 2, 4), torch.tensor([0, 0, 1])], 1)
    assert value.item() == pytest.approx(math.log(5), rel=1e-6)
    assert grads[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, y = _case(9)
    z = z.to(dtype)
    loss = partial(sup_con, temperature=0.05)
    want, wanted = value_and_gradients(loss, [z.float(), y], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(loss, [z, y], 1)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(grads[0], wanted[0].to(dtype))


def test_gradcheck() -> None:
    z, y = _case(3)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sup_con(z, y, 0.3), [z], eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("views", [2, 3])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], views: int) -> None:
    assert_ranks_equal_one(ranks, partial(sup_con, temperature=0.1), _case(6, views), 1, counts)


def _unlabeled(z: Tensor) -> Tensor:
    return sup_con(z, None, 0.1)


def test_ranks_equal_one_without_labels(ranks: Ranks) -> None:
    assert_ranks_equal_one(ranks, _unlabeled, _case()[:1], 1, (4, 2))


def test_the_whole_similarity_matrix_is_never_formed() -> None:
    n = 2000
    with Largest() as largest:
        z = torch.randn(n, 2, 2)
        value_and_gradients(partial(sup_con, temperature=0.1), [z, torch.arange(n) % 10], 1)
    assert largest.numel <= 1 << 21 < (2 * n) ** 2 / 7


def _on_fake_cuda() -> Tensor:
    z = torch.randn(50, 2, 8, device=DEVICE, requires_grad=True)
    return sup_con(z, torch.randint(5, (50,), device=DEVICE), 0.1)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    loss = partial(sup_con, temperature=0.1)
    assert_compiles(loss, _case(), 1)


def test_wrong_input_is_named() -> None:
    z, y = _case()
    with pytest.raises(ValueError, match=r"at least two views, got \(6, 5\)"):
        sup_con(z[:, 0], y, 0.1)
    with pytest.raises(ValueError, match=r"at least two views, got \(6, 1, 5\)"):
        sup_con(z[:, :1], y, 0.1)
    with pytest.raises(ValueError, match=r"label must be \(6,\), one per sample, got \(5,\)"):
        sup_con(z, y[:5], 0.1)
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0"):
        sup_con(z, y, 0.0)
