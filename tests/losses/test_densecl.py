"""Dense InfoNCE against a slow reference, and on ranks."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from sslzoo.losses import dense_info_nce, dense_matches
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

DRAW = torch.Generator().manual_seed(0)
QUEUE = torch.nn.functional.normalize(torch.randn(7, 3, generator=DRAW, dtype=torch.float64))


def data(n: int = 6) -> list[Tensor]:
    """Queries (n, 4, 3), keys (n, 5, 3), maps (n, 4, 2) and (n, 5, 2)."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((4, 3), (5, 3), (4, 2), (5, 2))
    parts = [torch.randn(n, *s, generator=generator, dtype=torch.float64) for s in sizes]
    return [torch.nn.functional.normalize(x, dim=-1) if i < 2 else x for i, x in enumerate(parts)]


def loss(q: Tensor, k: Tensor, f: Tensor, g: Tensor, temperature: float = 0.2) -> Tensor:
    return dense_info_nce(
        q,
        k,
        dense_matches(f, g),
        QUEUE.to(torch.promote_types(q.dtype, torch.float32)),
        temperature,
    )


def reference(q: Tensor, k: Tensor, f: Tensor, g: Tensor, temperature: float = 0.2) -> Tensor:
    terms = []
    for i in range(len(q)):
        for s in range(q.shape[1]):
            cosines = [
                float((f[i, s] * g[i, r]).sum() / f[i, s].norm() / g[i, r].norm())
                for r in range(g.shape[1])
            ]
            best = max(range(len(cosines)), key=cosines.__getitem__)
            positive = (q[i, s] * k[i, best]).sum()
            logits = torch.stack([positive, *(QUEUE @ q[i, s])]) / temperature
            terms.append(logits.logsumexp(0) - logits[0])
    return torch.stack(terms).mean()


@pytest.mark.parametrize("temperature", [0.2, 0.005])
def test_value_and_gradient_are_the_references(temperature: float) -> None:
    got = value_and_gradients(partial(loss, temperature=temperature), data(), 2)
    want = value_and_gradients(partial(reference, temperature=temperature), data(), 2)
    torch.testing.assert_close(got, want)


def test_hand_worked_value() -> None:
    """Position 0 matches key position 1, whose key is the query; the queue is orthogonal."""
    e = torch.eye(2, dtype=torch.float64)
    q, k, f, g = e[None, :1], e[None].flip(1), e[None, 1:], torch.stack([e[0], 3 * e[1]])[None]
    assert dense_matches(f, g).tolist() == [[1]]
    value = dense_info_nce(q, k, dense_matches(f, g), e[1:], 0.5)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, loss, data(), 2, counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    half = [x.to(dtype) for x in data()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(loss, half, 2)
    want, wanted = value_and_gradients(loss, [x.float() for x in half], 2)
    torch.testing.assert_close(got, want)
    for grad, wide in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, wide.to(dtype))


def _on_fake_cuda() -> Tensor:
    q, k, f, g = (
        torch.randn(2, n, d, device=DEVICE, requires_grad=True)
        for n, d in ((4, 3), (5, 3), (4, 2), (5, 2))
    )
    return dense_info_nce(q, k, dense_matches(f, g), torch.randn(7, 3, device=DEVICE), 0.2)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_input_is_named() -> None:
    q, k, f, g = data()
    with pytest.raises(ValueError, match=r"\(6, 4, 2\) and \(5, 5, 2\)"):
        dense_matches(f, g[:5])
    matches = dense_matches(f, g)
    with pytest.raises(ValueError, match=r"\(6, 4, 3\), \(6, 5, 3\) and \(6, 3\)"):
        dense_info_nce(q, k, matches[:, :3], QUEUE, 0.2)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        dense_info_nce(q, k, matches, QUEUE, 0.0)
