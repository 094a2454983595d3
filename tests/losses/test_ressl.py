"""ReSSL's loss against a slow reference, the official arrays, and on ranks."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.losses import relational
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def rows(*shape: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=draw, dtype=torch.float64), dim=-1)


QUEUE = rows(9, 3, seed=0)


def data(n: int = 6) -> list[Tensor]:
    """Two strong crops of n samples (n, 2, 3), and their keys (n, 3)."""
    return [rows(n, 2, 3, seed=1), rows(n, 3, seed=2)]


def loss(q: Tensor, k: Tensor, ts: float = 0.1, tt: float = 0.04) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    return relational(q.transpose(0, 1), k, QUEUE.to(wide), ts, tt)


def reference(q: Tensor, k: Tensor, ts: float = 0.1, tt: float = 0.04) -> Tensor:
    terms = []
    for crops, key in zip(q, k, strict=True):
        target = torch.stack([(key * other).sum() / tt for other in QUEUE]).softmax(0)
        for crop in crops:
            logits = torch.stack([(crop * other).sum() / ts for other in QUEUE])
            terms.append(logits.logsumexp(0) - (target * logits).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("temperatures", [(0.1, 0.04), (0.005, 0.002), (50.0, 90.0)])
def test_value_and_gradient_are_the_references(temperatures: tuple[float, float]) -> None:
    ts, tt = temperatures
    queries, keys = data()
    got = value_and_gradients(partial(loss, k=keys, ts=ts, tt=tt), [queries], 1)
    want = value_and_gradients(partial(reference, k=keys, ts=ts, tt=tt), [queries], 1)
    torch.testing.assert_close(got, want)


def test_hand_worked_value() -> None:
    e = torch.eye(2, dtype=torch.float64)
    value = relational(e[None, :1], e[:1], e, 1.0, 0.5)  # logits (1, 0), target of (2, 0)
    p = 1 / (1 + math.exp(-2))
    assert value.item() == pytest.approx(math.log(1 + math.e) - p)


def test_no_gradient_reaches_the_keys() -> None:
    queries, keys = (x.requires_grad_() for x in data())
    loss(queries, keys).backward()
    assert keys.grad is None
    assert queries.grad is not None


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, loss, data(), 1, counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    half = [x.to(dtype) for x in data()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(loss, half, 1)
    want, wanted = value_and_gradients(loss, [x.float() for x in half], 1)
    assert torch.equal(got, want)
    torch.testing.assert_close(grads[0], wanted[0].to(dtype))


def _on_fake_cuda() -> Tensor:
    sizes = (2, 4, 3), (4, 3), (9, 3)
    q, k, queue = (torch.randn(*s, device=DEVICE, requires_grad=len(s) == 3) for s in sizes)
    return relational(q, k, queue, 0.1, 0.04)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_input_is_named() -> None:
    queries, keys = data()
    with pytest.raises(ValueError, match=r"\(6, 2, 3\), \(6, 3\) and \(9, 3\)"):
        relational(queries, keys, QUEUE, 0.1, 0.04)
    for name, values in (("student", (0.0, 1.0)), ("teacher", (1.0, -1.0))):
        with pytest.raises(ValueError, match=f"{name}_temperature must be above 0, got"):
            relational(queries.transpose(0, 1), keys, QUEUE, *values)


def test_golden() -> None:
    """Their logits are similarities to a queue that is the identity."""
    z = load("ressl/loss.npz")
    hyper, (student, teacher) = z["meta"]["hyper"], (torch.tensor(z[f"logits{s}"]) for s in "qk")
    temperatures = hyper["student_temp"], hyper["teacher_temp"]
    student.requires_grad_()
    value = relational(student[None], teacher, torch.eye(hyper["K"]), *temperatures)
    value.backward()
    assert_close_to_golden(value, z["loss"], 1e-6)
    assert_close_to_golden(student.grad, z["grad_logitsq"], 1e-6)
