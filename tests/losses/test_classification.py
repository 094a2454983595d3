"""Cross-entropy and soft cross-entropy against slow references, by hand, and on several ranks."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from sslzoo.losses import cross_entropy, soft_cross_entropy
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.ranks import Ranks


def slow_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    terms = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        log_p = [row[c] - row.logsumexp(0) for c in range(len(row))]
        terms.append(-(1 - smoothing) * log_p[label] - smoothing * sum(log_p) / len(row))
    return torch.stack(terms).mean()


def slow_soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    terms = []
    for s, t in zip(student / temperature, teacher.detach() / temperature, strict=True):
        classes = range(len(s))
        p = [1 / sum((t[d] - t[c]).exp() for d in classes) for c in classes]
        terms.append(sum(p[c] * (s.logsumexp(0) - s[c]) for c in classes))
    return torch.stack(terms).mean()


def logits(n: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64) * 3


LABELS = torch.tensor([0, 3, 1, 1, 2, 0, 3])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_reference(smoothing: float) -> None:
    case = [logits(), LABELS]
    got, grads = value_and_gradients(partial(cross_entropy, label_smoothing=smoothing), case, 1)
    want, wanted = value_and_gradients(partial(slow_cross_entropy, smoothing=smoothing), case, 1)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads, wanted)


@pytest.mark.parametrize("temperature", [0.02, 1.0, 50.0])
def test_soft_cross_entropy_is_the_reference(temperature: float) -> None:
    case = [logits(), logits(seed=1)]
    got, grads = value_and_gradients(partial(soft_cross_entropy, temperature=temperature), case, 1)
    want, wanted = value_and_gradients(
        partial(slow_soft_cross_entropy, temperature=temperature), case, 1
    )
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads, wanted)


def test_values_worked_by_hand() -> None:
    # Logits log(1), log(3): probabilities 1/4 and 3/4.
    row = torch.tensor([[0.0, math.log(3.0)]])
    assert cross_entropy(row, torch.tensor([0])).item() == pytest.approx(math.log(4))
    # The teacher at T = 1/2: squares, 1/10 and 9/10, for student and teacher alike.
    wanted = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert soft_cross_entropy(row, row, 0.5).item() == pytest.approx(wanted)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = logits().requires_grad_(), logits(seed=1).requires_grad_()
    soft_cross_entropy(student, teacher, 1.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    half = logits().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cross_entropy(half, LABELS), cross_entropy(half.float(), LABELS))
        full = half.float()
        assert torch.equal(soft_cross_entropy(half, half, 0.1), soft_cross_entropy(full, full, 0.1))
    extreme = torch.tensor([[1e4, -1e4]], dtype=torch.float16)
    assert soft_cross_entropy(extreme, -extreme, 0.1).isfinite()


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(counts: tuple[int, ...], ranks: Ranks) -> None:
    n = sum(counts)
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(4, (n,), generator=generator)
    assert_ranks_equal_one(ranks, cross_entropy, [logits(n), labels], 1, counts)
    soft = partial(soft_cross_entropy, temperature=0.3)
    assert_ranks_equal_one(ranks, soft, [logits(n), logits(n, 1)], 1, counts)


def test_errors_name_what_they_got() -> None:
    with pytest.raises(ValueError, match=r"got \(7, 4\) and \(6,\)"):
        cross_entropy(logits(), LABELS[:6])
    with pytest.raises(ValueError, match=r"got \(7, 4\) and \(6, 4\)"):
        soft_cross_entropy(logits(), logits(6), 1.0)
    with pytest.raises(ValueError, match="above 0, got 0"):
        soft_cross_entropy(logits(), logits(), 0)
