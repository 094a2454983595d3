"""CPC's InfoNCE against a slow float64 reference, the official arrays, and itself on ranks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.losses import cpc_info_nce
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

POSITIVES = torch.tensor([2, 0, 1])


def loss(p: Tensor, t: Tensor, negatives: Tensor, scale: float = 1.0) -> Tensor:
    return cpc_info_nce(p, t, POSITIVES, negatives, scale)


def reference(p: Tensor, t: Tensor, negatives: Tensor, scale: float = 1.0) -> Tensor:
    """Prediction by prediction: the log of the softmax, written out."""
    every = [target for sample in t for target in sample]
    terms = []
    for i in range(len(p)):
        for j in range(p.shape[1]):
            candidates = [t[i, POSITIVES[j]], *(every[k] for k in negatives[i, j].tolist())]
            scores = torch.stack([scale * (p[i, j] @ candidate) for candidate in candidates])
            terms.append(-scores.log_softmax(0)[0])
    return torch.stack(terms).mean()


def _inputs(n: int = 6, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    p = torch.randn(n, 3, 5, generator=generator, dtype=torch.float64) * scale
    t = torch.randn(n, 4, 5, generator=generator, dtype=torch.float64) * scale
    return [p, t, torch.randint(0, n * 4, (n, 3, 7), generator=generator)]


@pytest.mark.parametrize("n", [1, 5, 12])  # of 12, the drawn targets are copied
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_value_and_gradient_are_the_references(n: int, scale: float) -> None:
    got = value_and_gradients(partial(loss, scale=scale), _inputs(n), 2)
    want = value_and_gradients(partial(reference, scale=scale), _inputs(n), 2)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n", [2, 12])  # one product with all targets; copies of the drawn ones
def test_predictions_of_a_place_share_its_negatives(n: int) -> None:
    p, t, negatives = _inputs(n)
    both = torch.stack([p, p.flip(0)], dim=2)  # (n, P, 2, D)
    positives = torch.stack([POSITIVES, POSITIVES.flip(0)], dim=1)
    got = cpc_info_nce(both, t, positives, negatives)
    parts = [cpc_info_nce(both[:, :, i], t, positives[:, i], negatives) for i in range(2)]
    torch.testing.assert_close(got, (parts[0] + parts[1]) / 2)


def test_hand_worked_value() -> None:
    # The own target scores 1, the other sample's 0, drawn twice: log((e + 2) / e).
    x = torch.eye(2)[:, None]
    negatives = torch.tensor([[[1, 1]], [[0, 0]]])
    got = cpc_info_nce(x, x, torch.tensor([0]), negatives)
    assert got.item() == pytest.approx(math.log((math.e + 2) / math.e), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    p, t, negatives = _inputs()
    p, t = p.to(dtype), t.to(dtype)
    want, wanted = value_and_gradients(loss, [p.float(), t.float(), negatives], 2)
    leaves = [p.clone().requires_grad_(), t.clone().requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(*leaves, negatives)
    got.backward()
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    for leaf, right in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(leaf.grad, right.to(dtype), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, loss, _inputs(), 2, counts)


def _on_fake_cuda() -> Tensor:
    p, t = (torch.randn(5, s, 4, device=DEVICE, requires_grad=True) for s in (3, 4))
    negatives = torch.zeros(5, 3, 6, dtype=torch.int64, device=DEVICE)
    return cpc_info_nce(p, t, torch.arange(3, device=DEVICE), negatives)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    assert_compiles(loss, _inputs(), 2)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 2), (3, 4, 5), (2,), (3, 2, 1)), r"\(3, 2\)"),
        (((3, 2, 5), (3, 4, 6), (2,), (3, 2, 1)), r"\(3, 4, 6\)"),
        (((3, 2, 5), (3, 4, 5), (3,), (3, 2, 1)), r"\(3,\)"),
        (((3, 2, 5), (3, 4, 5), (2,), (3, 2, 0)), r"\(3, 2, 0\)"),
    ],
)
def test_wrong_input_is_named(shapes: Any, message: str) -> None:
    p, t = torch.ones(shapes[0]), torch.ones(shapes[1])
    positives, negatives = (torch.zeros(s, dtype=torch.int64) for s in shapes[2:])
    with pytest.raises(ValueError, match=message):
        cpc_info_nce(p, t, positives, negatives)


def test_golden_rows_of_images() -> None:
    """One step at a time, as the code draws: W_k z of the rows predicted, ordered (y, x, batch)."""
    data = load("cpc/gim_vision_infonce.npz")
    hyper = data["meta"]["hyper"]
    z, c = (torch.from_numpy(data[name]).requires_grad_() for name in "zc")
    steps, count = hyper["prediction_step"], hyper["negative_samples"]
    weights = [torch.from_numpy(data[f"param:W_k.{k}.weight"]).requires_grad_() for k in range(2)]
    total = torch.zeros(())
    for k in range(1, steps + 1):
        reach = k + hyper["skip_step"]
        target = torch.nn.functional.conv2d(z[:, :, reach:], weights[k - 1])
        anchor = c[:, :, :-reach]
        batch, _, height, width = target.shape
        drawn = torch.from_numpy(data[f"rand_index_k{k}"])
        place, sample = drawn // batch, drawn % batch
        negatives = (sample * height * width + place).view(height * width, batch, count)
        total = total + cpc_info_nce(
            anchor.flatten(2).mT,
            target.flatten(2).mT,
            torch.arange(height * width),
            negatives.transpose(0, 1),
        )
    loss = total / steps
    assert_close_to_golden(loss, data["loss"])
    loss.backward()
    assert_close_to_golden(z.grad, data["grad_z"])
    assert_close_to_golden(c.grad, data["grad_c"])
    for k, weight in enumerate(weights):
        assert_close_to_golden(weight.grad, data[f"grad:W_k.{k}.weight"])
