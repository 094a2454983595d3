"""Masked features against a slow reference, and on ranks; the official arrays in test_ijepa."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslzoo.losses import masked_features
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def reference(prediction: Tensor, target: Tensor) -> Tensor:
    """Number by number."""
    width = prediction.shape[-1]
    terms = []
    for p, h in zip(prediction.reshape(-1, width), target.reshape(-1, width), strict=True):
        h = (h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt()
        for a, b in zip(p, h, strict=True):
            d = (a - b).abs()
            terms.append(d**2 / 2 if d < 1 else d - 0.5)
    return torch.stack(terms).mean()


def data(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    shape = (n, 2, 3, 4)
    return [2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_value_and_gradient_are_the_references() -> None:
    got = value_and_gradients(masked_features, data(), 1)
    torch.testing.assert_close(got, value_and_gradients(reference, data(), 1))


def test_hand_worked_value() -> None:
    target = torch.tensor([[1.0, -1.0]]).double() * 1e6  # normalized: 1, -1
    prediction = torch.tensor([[1.5, 2.0]]).double()  # off by 0.5 and 3
    assert masked_features(prediction, target).item() == pytest.approx((0.125 + 2.5) / 2)


def test_flat_targets_and_large_errors_stay_finite() -> None:
    prediction = torch.full((2, 3, 4), 1e30)
    value, (grad,) = value_and_gradients(masked_features, [prediction, torch.ones(2, 3, 4)], 1)
    assert value.isfinite()
    torch.testing.assert_close(grad, torch.full((2, 3, 4), 1 / 24))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    pair = [x.to(dtype) for x in data()]
    want, wanted = value_and_gradients(masked_features, [x.float() for x in pair], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(masked_features, pair, 1)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(grads[0], wanted[0].to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, masked_features, data(), 1, counts)


def _on_fake_cuda() -> Tensor:
    prediction = torch.randn(4, 3, device=DEVICE, requires_grad=True)
    return masked_features(prediction, torch.randn(4, 3, device=DEVICE))


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        masked_features(torch.ones(2, 3), torch.ones(2, 4))
