"""The triplet loss, each way of mining, against a slow float64 reference and on ranks."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.losses import triplet
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
MININGS = ["all", "hard", "semi_hard"]


def reference(
    z: Tensor,
    label: Tensor,
    margin: float | None = 0.2,
    mining: str = "semi_hard",
    squared: bool = True,
    mean_over: str = "all",
) -> Tensor:
    """Triplet by triplet, in loops; float64."""
    rows = z.double().flatten(0, 1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    y = label.repeat_interleave(z.shape[1]).tolist()
    every = range(len(rows))

    def d(i: int, j: int) -> Tensor:
        square = (rows[i] - rows[j]).square().sum()
        return square if squared else square.sqrt()

    chosen: list[tuple[int, int, int]] = []
    for a in every:
        positives = [p for p in every if y[p] == y[a] and p != a]
        negatives = [n for n in every if y[n] != y[a]]
        if not negatives:
            continue
        if mining == "all":
            chosen += [(a, p, n) for p in positives for n in negatives]
        elif mining == "hard":
            p = max(positives, key=lambda p: d(a, p).item())
            chosen.append((a, p, min(negatives, key=lambda n: d(a, n).item())))
        else:
            for p in positives:
                assert margin is not None
                near, far = d(a, p).item(), d(a, p).item() + margin
                band = [n for n in negatives if near < d(a, n).item() < far]
                if band:
                    chosen.append((a, p, min(band, key=lambda n: d(a, n).item())))
    terms = []
    for a, p, n in chosen:
        gap = d(a, p) - d(a, n)
        terms.append(F.softplus(gap) if margin is None else (gap + margin).clamp(min=0))
    if mean_over == "nonzero":
        terms = [term for term in terms if term.item() > 0]
    return torch.stack(terms).mean() if terms else rows.sum() * 0


def _case(n: int = 6, views: int = 2, classes: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, views, 4, generator=generator, dtype=torch.float64)
    return [z, torch.randint(classes, (n,), generator=generator)]


@pytest.mark.parametrize("block", [30, 1 << 21])
@pytest.mark.parametrize(("n", "views", "margin"), [(1, 2, 0.8), (2, 3, 0.05), (8, 2, 10.0)])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("mean_over", ["all", "nonzero"])
def test_value_and_gradient_are_the_references(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    n: int,
    views: int,
    margin: float,
    squared: bool,
    mining: str,
    mean_over: str,
) -> None:
    monkeypatch.setitem(blockwise._BLOCK, "cpu", block)
    options: dict[str, Any] = {"margin": margin, "mining": mining, "squared": squared}
    options["mean_over"] = mean_over
    case = _case(n, views)
    got, grads = value_and_gradients(partial(triplet, **options), case, 1)
    want, wanted = value_and_gradients(partial(reference, **options), case, 1)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(grads, wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("squared", [True, False])
def test_the_soft_margin_is_the_references(squared: bool) -> None:
    options: dict[str, Any] = {"margin": None, "mining": "hard", "squared": squared}
    got, grads = value_and_gradients(partial(triplet, **options), _case(8), 1)
    want, wanted = value_and_gradients(partial(reference, **options), _case(8), 1)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(grads, wanted, rtol=1e-7, atol=1e-10)


def test_without_labels_a_sample_is_alike_its_views_only() -> None:
    z, _ = _case()
    for mining in MININGS:
        loss = partial(triplet, mining=mining, margin=0.5)
        assert torch.equal(loss(z), loss(z, torch.tensor([3, 9, 1, 0, 7, 5])))


def test_hand_worked_values() -> None:
    # On a circle: one image's views at 0 and 90 degrees, another's at 180 and 180. Squared
    # distances: 2 for 90 degrees, 4 for 180. Margin 1, anchors in turn:
    #   0:   positive 2, negatives 4, 4: nothing.
    #   90:  positive 2, negatives 2, 2: a loss of 1 twice.
    #   180, 180: positive 0, negatives 4 and 2: nothing.
    z = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[-1.0, 0.0], [-2.0, 0.0]]])
    assert triplet(z, None, 1.0, "all").item() == pytest.approx(2 / 8, abs=1e-6)
    assert triplet(z, None, 1.0, "all", mean_over="nonzero").item() == pytest.approx(1, abs=1e-6)
    assert triplet(z, None, 1.0, "hard").item() == pytest.approx(1 / 4, abs=1e-6)
    # Margin 3: the anchor at 0 has negatives 2 beyond its positive, those at 180 have theirs at 2.
    want = (1 + 1 + 1) / 3
    assert triplet(z, None, 3.0, "semi_hard").item() == pytest.approx(want, abs=1e-6)
    soft = math.log(1 + math.exp(-2)) * 3 + math.log(2)
    assert triplet(z, None, None, "hard").item() == pytest.approx(soft / 4, abs=1e-6)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("margin", [1e-3, 1e3])
def test_extreme_margins_in_float32(mining: str, margin: float) -> None:
    z, y = _case(9)
    options: dict[str, Any] = {"margin": margin, "mining": mining}
    got, grads = value_and_gradients(partial(triplet, **options), [z.float(), y], 1)
    want, wanted = value_and_gradients(partial(reference, **options), [z, y], 1)
    assert_close_to_golden(got, want)
    assert_close_to_golden(grads[0], wanted[0])


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("mining", MININGS)
def test_points_that_coincide_stay_finite(mining: str, squared: bool) -> None:
    loss = partial(triplet, mining=mining, squared=squared)
    for z in (torch.zeros(3, 2, 4), torch.full((3, 2, 4), 2.0)):
        value, grads = value_and_gradients(loss, [z], 1)
        assert value.item() == pytest.approx(0.0 if mining == "semi_hard" else 0.2)
        assert grads[0].isfinite().all()


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, mining: str) -> None:
    z, y = _case(9)
    z = z.to(dtype)
    loss = partial(triplet, margin=0.5, mining=mining)
    want, wanted = value_and_gradients(loss, [z.float(), y], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(loss, [z, y], 1)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(grads[0], wanted[0].to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("mining", MININGS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], mining: str) -> None:
    for mean_over in ("all", "nonzero"):
        loss = partial(triplet, margin=0.8, mining=mining, mean_over=mean_over)
        assert_ranks_equal_one(ranks, loss, _case(), 1, counts)
        assert_ranks_equal_one(ranks, loss, _case()[:1], 1, counts)


@pytest.mark.parametrize("mining", MININGS)
def test_the_whole_distance_matrix_is_never_formed(mining: str) -> None:
    n = 1000
    with Largest() as largest:
        value_and_gradients(partial(triplet, mining=mining), [torch.randn(n, 2, 2)], 1)
    assert largest.numel <= 1 << 21 < (2 * n) ** 2 / 1.9


def _on_fake_cuda(mining: str, margin: float | None, mean_over: str) -> Tensor:
    z = torch.randn(50, 2, 8, device=DEVICE, requires_grad=True)
    label = torch.randint(5, (50,), device=DEVICE)
    return triplet(z, label, margin, mining, False, mean_over)  # type: ignore[arg-type]


@pytest.mark.parametrize("mean_over", ["all", "nonzero"])
@pytest.mark.parametrize("mining", MININGS)
def test_no_host_synchronization(mining: str, mean_over: str) -> None:
    assert syncs(_on_fake_cuda, mining, 0.2, mean_over) == []
    assert syncs(_on_fake_cuda, "hard", None, mean_over) == []


@pytest.mark.parametrize("mining", ["semi_hard"])
def test_compiles_without_graph_break(mining: str) -> None:
    loss = partial(triplet, margin=0.8, mining=mining)
    assert_compiles(loss, _case(), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mining": "easy"}, "got 'easy' and 'all'"),
        ({"mean_over": "some"}, "got 'semi_hard' and 'some'"),
        ({"margin": 0.0}, "margin must be above 0, got 0.0"),
        ({"margin": None}, "mining must be .hard. for the soft margin None, got .semi_hard."),
    ],
)
def test_wrong_options_are_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        triplet(*_case(), **options)


def test_wrong_shapes_are_named() -> None:
    z, y = _case()
    with pytest.raises(ValueError, match=r"at least two views, got \(6, 4\)"):
        triplet(z[:, 0], y)
    with pytest.raises(ValueError, match=r"label must be \(6,\), one per sample, got \(5,\)"):
        triplet(z, y[:5])
