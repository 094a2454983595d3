"""AMDIM's NCE against a slow float64 reference, the official arrays, and itself on ranks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.distributed import row_layout
from sslzoo.losses import amdim_nce
from sslzoo.losses.amdim import location_scores
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def both(source: Tensor, target: Tensor, clip: float = 20.0) -> Tensor:
    """A weighted sum, so that one gradient holds both results."""
    nce, size = amdim_nce(source, target, clip)
    return nce + 0.05 * size


def reference(source: Tensor, target: Tensor, clip: float = 20.0) -> Tensor:
    """Place by place: the positive among itself and all places of other images."""
    n, dim, places = target.shape
    raw = [[[source[i] @ target[j, :, s] / math.sqrt(dim) for s in range(places)]
            for j in range(n)] for i in range(n)]  # fmt: skip
    terms = []
    for i in range(n):
        others = [raw[i][j][s] for j in range(n) if j != i for s in range(places)]
        for s in range(places):
            logits = clip * torch.tanh(torch.stack([raw[i][i][s], *others]) / clip)
            terms.append(-logits.log_softmax(0)[0])
    every = torch.stack([x for row in raw for image in row for x in image])
    return torch.stack(terms).mean() + 0.05 * every.square().mean()


def _inputs(n: int = 6, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    shapes = [(n, 4), (n, 4, 3)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) * scale for s in shapes]


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("clip", [0.1, 2.0, 20.0, 1000.0])
def test_value_and_gradient_are_the_references(n: int, clip: float) -> None:
    got = value_and_gradients(partial(both, clip=clip), _inputs(n), 2)
    want = value_and_gradients(partial(reference, clip=clip), _inputs(n), 2)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_hand_worked_value() -> None:
    # Width 4, so dots are halved: 1 with the own place, 0 with the other image's; clip 2.
    source = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]])
    nce, size = amdim_nce(source, source[:, :, None] / 2, clip=2.0)
    top = 2 * math.tanh(0.5)
    assert nce.item() == pytest.approx(math.log(math.exp(top) + 1) - top, rel=1e-6)
    assert size.item() == pytest.approx(0.5)


def test_large_scores_are_clipped_and_finite() -> None:
    given = _inputs(scale=100.0)
    got, grads = value_and_gradients(both, [x.float() for x in given], 2)
    want, wanted = value_and_gradients(reference, given, 2)
    assert_close_to_golden(got, want, 1e-5)
    for grad, right in zip(grads, wanted, strict=True):
        assert_close_to_golden(grad, right, 1e-4)
    assert amdim_nce(*given)[0] <= 40 + math.log(6 * 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    given = [x.to(dtype) for x in _inputs()]
    want, wanted = value_and_gradients(both, [x.float() for x in given], 2)
    leaves = [x.clone().requires_grad_() for x in given]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = both(*leaves)
    got.backward()  # outside, as a Trainer does: products in it follow autocast
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    for leaf, right in zip(leaves, wanted, strict=True):
        assert torch.equal(leaf.grad, right.to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, both, _inputs(), 2, counts)


def _on_fake_cuda() -> Tensor:
    shapes = [(5, 4), (5, 4, 3)]
    return both(*(torch.randn(s, device=DEVICE, requires_grad=True) for s in shapes))


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    assert_compiles(both, _inputs(), 2)


@pytest.mark.parametrize(
    ("shapes", "clip", "message"),
    [
        (((3, 2), (3, 4, 5)), 20.0, r"\(3, 2\) and \(3, 4, 5\)"),
        (((3, 2), (3, 2)), 20.0, r"\(3, 2\) and \(3, 2\)"),
        (((3, 2), (3, 2, 5)), 0.0, "above 0, got 0.0"),
        (((1, 2), (1, 2, 5)), 20.0, "at least 2 images .*, got 1"),
    ],
)
def test_wrong_input_is_named(shapes: Any, clip: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        amdim_nce(torch.ones(shapes[0]), torch.ones(shapes[1]), clip)


def test_golden() -> None:
    z = load("dim/amdim_nce.npz")
    hyper = z["meta"]["hyper"]
    n, places, clip = hyper["B"], hyper["n_locs"], hyper["tclip"]
    source = torch.from_numpy(z["r_src"]).requires_grad_()
    flat = torch.from_numpy(z["r_trg"]).requires_grad_()
    target = flat.unflatten(1, (n, places)).transpose(0, 1)  # theirs is (D, n S)
    nce, size = amdim_nce(source, target, clip)
    assert_close_to_golden(nce, z["loss"])
    assert_close_to_golden(0.05 * size, z["lgt_reg"])
    (nce + 0.05 * size).backward()
    assert_close_to_golden(source.grad, z["grad_src"])
    assert_close_to_golden(flat.grad, z["grad_trg"])
    log_softmax, positive, raw = location_scores(source, target, clip, row_layout(n))
    assert_close_to_golden(log_softmax, z["nce_scores"])
    assert_close_to_golden(positive, z["pos_scores"])
    own = torch.zeros(n, n)
    own.diagonal().fill_(1)
    assert_close_to_golden(own, z["mask"], 0)
    assert raw.shape == (n, n, places)
