"""The margin contrastive loss against a slow float64 reference, and itself on several ranks."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor

from sslzoo.losses import margin_contrastive
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


def reference(z: Tensor, label: Tensor, margin: float = 1.0) -> Tensor:
    """Pair by pair, in the words of the paper's equation 4; float64."""
    rows = z.double().flatten(0, 1)
    y = label.repeat_interleave(z.shape[1]).tolist()
    pull, push = [], []
    for i in range(len(rows)):
        for j in range(i):
            distance = (rows[i] - rows[j]).norm()
            if y[i] == y[j]:
                pull.append(distance**2 / 2)
            else:
                push.append(torch.clamp(margin - distance, min=0) ** 2 / 2)
    total = torch.stack(pull).mean() / 2
    return total + torch.stack(push).mean() / 2 if push else total


def _case(n: int = 6, views: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, views, 5, generator=generator, dtype=torch.float64)
    return [z, torch.randint(3, (n,), generator=generator)]


@pytest.mark.parametrize("block", [1, 30, 1 << 21])
@pytest.mark.parametrize(("n", "views"), [(1, 2), (2, 3), (7, 2)])
@pytest.mark.parametrize("margin", [0.5, 3.0, 100.0])
def test_value_and_gradient_are_the_references(
    monkeypatch: pytest.MonkeyPatch, block: int, n: int, views: int, margin: float
) -> None:
    monkeypatch.setitem(blockwise._BLOCK, "cpu", block)
    case = _case(n, views)
    got, grads = value_and_gradients(partial(margin_contrastive, margin=margin), case, 1)
    want, wanted = value_and_gradients(partial(reference, margin=margin), case, 1)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-11)


def test_hand_worked_value() -> None:
    # Points on a line: 0 and 3 are one sample's views, 4 and 4 another's; m = 2. Pulled: 9 / 2 and
    # 0, mean 9 / 4. Pushed: 0-4 twice (0), 3-4 twice ((2 - 1)^2 / 2), mean 1 / 4.
    z = torch.tensor([[[0.0], [3.0]], [[4.0], [4.0]]])
    want = (9 / 4 + 1 / 4) / 2
    assert margin_contrastive(z, None, 2.0).item() == pytest.approx(want, rel=1e-6)
    assert margin_contrastive(z, torch.tensor([5, 2]), 2.0).item() == pytest.approx(want, rel=1e-6)


def test_points_that_coincide_stay_finite_and_get_no_pull() -> None:
    loss = partial(margin_contrastive, margin=1.0)
    value, grads = value_and_gradients(loss, [torch.full((3, 2, 4), 2.0)], 1)
    assert value.item() == pytest.approx(0.25)
    assert grads[0].abs().max() < 0.01


@pytest.mark.parametrize("margin", [1e-3, 2.0, 1e3])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_extreme_margins_in_float32(margin: float, scale: float) -> None:
    z, y = _case(20)
    z = z * scale
    loss = partial(margin_contrastive, margin=margin)
    got, grads = value_and_gradients(loss, [z.float(), y], 1)
    want, wanted = value_and_gradients(partial(reference, margin=margin), [z, y], 1)
    assert_close_to_golden(got, want)
    assert_close_to_golden(grads[0], wanted[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, y = _case(9)
    z = z.to(dtype)
    loss = partial(margin_contrastive, margin=3.0)
    want, wanted = value_and_gradients(loss, [z.float(), y], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(loss, [z, y], 1)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(grads[0], wanted[0].to(dtype))


def test_gradcheck() -> None:
    z, y = _case(4)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: margin_contrastive(z, y, 3.0), [z])


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    loss = partial(margin_contrastive, margin=3.0)
    assert_ranks_equal_one(ranks, loss, _case(), 1, counts)
    assert_ranks_equal_one(ranks, loss, _case()[:1], 1, counts)


def test_the_whole_distance_matrix_is_never_formed() -> None:
    n = 2000
    with Largest() as largest:
        value_and_gradients(margin_contrastive, [torch.randn(n, 2, 2)], 1)
    assert largest.numel <= 1 << 21 < (2 * n) ** 2 / 7


def _on_fake_cuda() -> Tensor:
    z = torch.randn(50, 2, 8, device=DEVICE, requires_grad=True)
    label = torch.randint(5, (50,), device=DEVICE)
    return margin_contrastive(z, label) + margin_contrastive(z)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    loss = partial(margin_contrastive, margin=3.0)
    assert_compiles(loss, _case(), 1)


def test_wrong_input_is_named() -> None:
    z, y = _case()
    with pytest.raises(ValueError, match=r"at least two views, got \(6, 5\)"):
        margin_contrastive(z[:, 0], y)
    with pytest.raises(ValueError, match=r"label must be \(6,\), one per sample, got \(5,\)"):
        margin_contrastive(z, y[:5])
    with pytest.raises(ValueError, match="margin must be above 0, got 0"):
        margin_contrastive(z, y, 0)
