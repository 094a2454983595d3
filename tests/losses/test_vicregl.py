"""VICRegL's matches and terms against a slow reference, the authors' arrays, and on ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.distributed import row_layout
from sslzoo.losses import VICRegTerms, crop_centers, vicregl_global, vicregl_local
from sslzoo.losses.vicregl import Matches, _matched, nearest
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

V, MATCHES, SIDES = 3, (2, 1), (2, 2, 1)


def weighted(terms: VICRegTerms) -> Tensor:
    """The paper's weights."""
    return torch.stack([25 * terms.invariance, 25 * terms.variance, terms.covariance])


def of_maps(*tensors: Tensor, matches: tuple[int, int] = MATCHES, every: bool = True) -> Tensor:
    """The local loss of V maps and their centers."""
    half = len(tensors) // 2
    return weighted(vicregl_local(tensors[:half], tensors[half:], matches, every)).sum()


def of_crops(*embeddings: Tensor) -> Tensor:
    return weighted(vicregl_global(embeddings)).sum()


def _spread(z: Tensor) -> tuple[Tensor, Tensor]:
    """Hinge and covariance term of (n, D), column by column."""
    hinge = torch.stack([(1 - (c.var() + 1e-4).sqrt()).clamp_min(0) for c in z.T]).mean()
    products = torch.cov(z.T)
    others = [products[a, b] ** 2 for a in range(z.shape[1]) for b in range(z.shape[1]) if a != b]
    return hinge, torch.stack(others).sum() / z.shape[1]


def _slow_pairs(x: Tensor, y: Tensor, where: Tensor, there: Tensor, kept: int) -> Tensor:
    """Terms of one direction, sample by sample and location by location; with its weights."""
    a, b = [], []
    for i in range(len(x)):
        distances = torch.stack([(there[i] - p).norm(dim=1) for p in where[i]])
        best = sorted(range(len(where[i])), key=lambda p: distances[p].min().item())[:kept]
        a.append(torch.stack([x[i, p] for p in sorted(best)]))
        b.append(torch.stack([y[i, distances[p].argmin()] for p in sorted(best)]))
    left, right = torch.stack(a), torch.stack(b)  # (n, P, C)
    value = 25 * (left - right).square().mean()
    for z in (left, right):
        for p in range(kept):
            hinge, covariance = _spread(z[:, p])
            value = value + (25 * hinge + covariance) / (2 * kept)
    return value


def slow_maps(*tensors: Tensor, matches: tuple[int, int], every: bool) -> Tensor:
    maps, centers = tensors[:V], tensors[V:]
    values = []
    for i in range(2):
        for j in range(V):
            if i == j:
                continue
            x, y, here, there = maps[i], maps[j], centers[i], centers[j]
            first, second = (x.shape[1], y.shape[1]) if every else matches
            by_feature = _slow_pairs(x, y, x, y, first) + _slow_pairs(y, x, y, x, second)
            by_place = _slow_pairs(x, y, here, there, matches[0])
            by_place = by_place + _slow_pairs(y, x, there, here, matches[1])
            values.append(by_feature / 2 + by_place / 2)
    return torch.stack(values).mean()


def slow_crops(*embeddings: Tensor) -> Tensor:
    pairs = [(i, j) for i in range(2) for j in range(len(embeddings)) if i != j]
    inv = [(embeddings[i] - embeddings[j]).square().mean() for i, j in pairs]
    spread = [_spread(z) for z in embeddings]
    value = 25 * torch.stack(inv).mean() + 25 * torch.stack([v for v, _ in spread]).mean()
    return value + torch.stack([c for _, c in spread]).mean()


def inputs(sides: tuple[int, ...] = SIDES, dim: int = 3, n: int = 6) -> list[Tensor]:
    """Maps and centers of random crops, in float64."""
    draw = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": draw, "dtype": torch.float64}
    scale = torch.linspace(0.3, 1.5, dim)
    maps = [torch.randn(n, side**2, dim, **options) * scale + 2 for side in sides]
    return [*maps, *(20 * torch.rand(n, side**2, 2, **options) for side in sides)]


@pytest.mark.parametrize("every", [True, False])
def test_local_value_and_gradient_are_the_references(every: bool) -> None:
    tensors, matches = inputs((2, 2, 2)), (3, 2)
    got = value_and_gradients(partial(of_maps, matches=matches, every=every), tensors, V)
    wanted = value_and_gradients(partial(slow_maps, matches=matches, every=every), tensors, V)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dim", [4, 14])
def test_global_value_and_gradient_are_the_references(dim: int) -> None:
    z = [x[:, 0] for x in inputs(dim=dim)[:V]]
    got = value_and_gradients(of_crops, z, V)
    torch.testing.assert_close(got, value_and_gradients(slow_crops, z, V))


def test_hand_worked_values() -> None:
    x, y = torch.tensor([[2.0, 2.0], [-2.0, -2.0]]), torch.zeros(2, 2)
    terms = vicregl_global([x, y])  # half of VICReg's covariance, which sums the views
    wanted = [4, (0 + 1 - 0.01) / 2, (8**2 + 8**2) / 2 / 2]
    assert torch.stack(list(terms)).tolist() == pytest.approx(wanted)
    # One location each, so that both kinds match it, which counts twice.
    here = torch.zeros(2, 1, 2)
    local = vicregl_local([x[:, None], y[:, None]], [here, here], (1, 1))
    wanted = [2 * 4, 2 * (0 + 1 - 0.01) / 2, 2 * (8**2 + 8**2) / 2 / 2]
    assert torch.stack(list(local)).tolist() == pytest.approx(wanted)


def test_centers_of_a_crop() -> None:
    boxes = torch.tensor([[10, 100, 20, 60, 0], [10, 100, 20, 60, 1]])
    rows = [15.0, 15.0, 15.0, 25.0, 25.0, 25.0]
    plain, mirrored = [110.0, 130.0, 150.0] * 2, [150.0, 130.0, 110.0] * 2
    for flip, second in ((True, mirrored), (False, plain)):
        centers = crop_centers(boxes, (2, 3), flip)
        assert centers[..., 0].tolist() == [rows, rows]
        assert centers[..., 1].tolist() == [plain, second]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    for loss, given in ((of_maps, inputs()), (of_crops, [x[:, 0] for x in inputs()[:V]])):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        want, wanted = value_and_gradients(loss, [x.detach().float() for x in leaves], V)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = loss(*leaves)
        got.backward()  # outside, as a Trainer does: products in it follow autocast
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        for leaf, right in zip(leaves, wanted, strict=False):
            assert torch.equal(leaf.grad, right.to(dtype))


def test_constant_maps_have_finite_gradients() -> None:
    tensors = [torch.ones_like(x) for x in inputs()]
    assert all(grad.isfinite().all() for grad in value_and_gradients(of_maps, tensors, V)[1])


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, of_maps, inputs(), V, counts)
    assert_ranks_equal_one(ranks, of_crops, [x[:, 0] for x in inputs()[:V]], V, counts)


def _on_fake_cuda() -> Tensor:
    maps = [torch.randn(4, 4, 3, device=DEVICE, requires_grad=True) for _ in range(2)]
    boxes = torch.zeros(4, 5, dtype=torch.int64, device=DEVICE)
    centers = [crop_centers(boxes, (2, 2)) for _ in maps]
    return of_maps(*maps, *centers) + of_crops(*(x[:, 0] for x in maps))


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


@pytest.mark.slow  # tracing 32 directions of pairs
def test_compiles_without_graph_break() -> None:
    assert_compiles(of_maps, inputs(), V)


def test_wrong_input_is_named() -> None:
    tensors = inputs()
    with pytest.raises(ValueError, match=r"num_matches must be in 1\.\.4, .*, got 5"):
        of_maps(*tensors, matches=(5, 1))
    with pytest.raises(ValueError, match=r"num_matches must be in 1\.\.1, .*, got 2"):
        of_maps(*tensors, matches=(3, 2))
    with pytest.raises(ValueError, match=r"at least 2 samples .*, got 1"):
        of_maps(*(x[:1] for x in tensors), matches=(2, 1))
    with pytest.raises(ValueError, match=r"maps and centers must be at least 2 .* got"):
        of_maps(*tensors[:2])
    with pytest.raises(ValueError, match=r"embeddings must be at least 2 tensors"):
        of_crops(tensors[0][:, 0])


# -- arrays of the authors' code


def test_centers_are_the_authors() -> None:
    z = load("vicregl/matching.npz")
    for view in range(4):
        boxes = torch.tensor(z[f"box{view}"])[:, :4]
        boxes = torch.cat([boxes, torch.tensor(z[f"flip{view}"])[:, None]], dim=1)
        grid = z[f"grid{view}"]
        centers = crop_centers(boxes, grid.shape[1:3]).view(grid.shape)
        assert torch.equal(centers, torch.tensor(grid))


@pytest.mark.parametrize("case", ["l2_all", "l2_top", "loc_top", "loc_top_reverse"])
def test_matches_are_the_authors(case: str) -> None:
    z = load("vicregl/matching.npz")
    maps, places = ([torch.tensor(z[f"{k}_{side}"]) for side in "ab"] for k in ("maps", "loc"))
    kept = z["meta"]["hyper"]["num_matches"]
    if case.endswith("reverse"):
        maps, places, kept = maps[::-1], places[::-1], kept[::-1]
    x, y = maps if case.startswith("l2") else places
    found = nearest(x, y, None if case == "l2_all" else kept[0])
    for which, z_side, name in zip(found, maps, ("filtered", "nn"), strict=True):
        rows = z_side.gather(1, which[..., None].expand(-1, -1, z_side.shape[2]))
        assert torch.equal(rows, torch.tensor(z[f"{case}_{name}"]))


def _official(rank: int, z: dict[str, Any]) -> dict[str, Tensor]:
    """Names of the file -> what this rank computes, gradients included."""
    matches = tuple(z["meta"]["hyper"]["num_matches"])
    found: dict[str, Tensor] = {}

    def leaves(name: str, number: int = 4) -> list[Tensor]:
        return [torch.tensor(z[f"{name}{v}"][rank]).requires_grad_() for v in range(number)]

    def keep(name: str, terms: Tensor, grads: dict[str, Tensor]) -> None:
        terms.sum().backward()
        found[name] = terms.detach()
        found.update({key: leaf.grad for key, leaf in grads.items() if leaf.grad is not None})

    emb = leaves("emb")
    terms = weighted(vicregl_global(emb))
    keep("global_terms", terms, {f"grad_emb{v}": emb[v] for v in range(4)})
    centers = [torch.tensor(z[f"loc{v}"][rank]).flatten(1, 2) for v in range(4)]
    for every in (1, 0):
        maps = leaves("maps")
        terms = weighted(vicregl_local(maps, centers, matches, bool(every)))
        name = f"local_grad_l2all{every}_maps"
        keep(f"local_terms_l2all{every}", terms, {f"{name}{v}": maps[v] for v in range(4)})
    pair = leaves("maps", 2)
    every_location = torch.arange(pair[0].shape[1]).expand(len(pair[0]), -1)
    matches_of_all = Matches(every_location, every_location)
    terms = weighted(_matched(*pair, matches_of_all, row_layout(len(pair[0]))))
    keep("pair_terms", terms, {f"pair_grad{v}": pair[v] for v in range(2)})
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_equals_the_authors(ranks: Ranks, world: int) -> None:
    z = load(f"vicregl/loss_{world}rank.npz")
    for rank, found in enumerate(ranks(world, _official, z)):
        assert len(found) == 1 + 4 + 2 * (1 + 4) + 1 + 2
        for name, value in found.items():
            assert_close_to_golden(value, z[name][rank], 2e-6)


def test_the_fast_form_has_the_same_invariance_and_no_scalar() -> None:
    """The authors' fast_vc_reg: terms of whole maps, of which the covariance is the last view's."""
    for world in (1, 2):
        z = load(f"vicregl/loss_{world}rank.npz")
        maps = [torch.tensor(z[f"maps{v}"]).flatten(0, 1) for v in range(4)]  # (N, L, C)
        at = [[_spread(m[:, p]) for p in range(m.shape[1])] for m in maps]
        variance = [torch.stack([v for v, _ in each]).mean() for each in at]
        last = torch.stack([c for _, c in at[-1]])
        for rank in range(world):
            assert_close_to_golden(z["fast_inv"][rank], z["local_terms_l2all1"][rank][0], 1e-6)
            assert_close_to_golden(25 * torch.stack(variance).mean(), z["fast_var"][rank], 1e-6)
            assert_close_to_golden((last + last.mean()) / 4, z["fast_cov"][rank], 2e-6)
