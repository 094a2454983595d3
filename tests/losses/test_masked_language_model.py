"""The masked-language-model loss against a slow reference, by hand, and on several ranks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslzoo.losses import masked_language_model
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.ranks import Ranks


def slow(logits: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    terms = [
        row.logsumexp(0) - row[target]
        for row, target, counts in zip(logits, targets.tolist(), real.tolist(), strict=True)
        if counts
    ]
    return torch.stack(terms).mean()


def case(n: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    logits = torch.randn(n, 5, generator=generator, dtype=torch.float64) * 3
    return [
        logits,
        torch.randint(5, (n,), generator=generator),
        torch.arange(n) % 3 != 1,
    ]


def test_equals_the_reference() -> None:
    got, grads = value_and_gradients(masked_language_model, case(), 1)
    want, wanted = value_and_gradients(slow, case(), 1)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads, wanted)


def test_value_worked_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 0.0], [0.0, math.log(3.0)]])
    targets, real = torch.tensor([0, 0, 1]), torch.tensor([True, False, True])
    wanted = (math.log(4) + math.log(4 / 3)) / 2
    assert masked_language_model(logits, targets, real).item() == pytest.approx(wanted)


def test_nothing_hidden_is_zero() -> None:
    logits, targets, real = case()
    assert masked_language_model(logits, targets, torch.zeros_like(real)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    logits, targets, real = case()
    half = logits.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = masked_language_model(half, targets, real)
        assert torch.equal(got, masked_language_model(half.float(), targets, real))
    extreme = torch.tensor([[6e4, -6e4]], dtype=torch.float16)
    got = masked_language_model(extreme, torch.tensor([1]), torch.tensor([True]))
    assert got.isfinite()


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(counts: tuple[int, ...], ranks: Ranks) -> None:
    assert_ranks_equal_one(ranks, masked_language_model, case(sum(counts)), 1, counts)


def test_errors_name_what_they_got() -> None:
    logits, targets, real = case()
    with pytest.raises(ValueError, match=r"got \(8, 5\), \(7,\) and \(8,\)"):
        masked_language_model(logits, targets[:7], real)
