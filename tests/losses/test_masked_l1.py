"""Masked L1 and targets by window against slow references, and on ranks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from sslzoo.losses import masked_l1, window_normalize
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def data(n: int = 6) -> list[Tensor]:
    """Predictions and images (n, 3, 4, 6), masks (n, 2, 3) of different numbers of patches."""
    draw = torch.Generator().manual_seed(n)
    pair = [torch.randn(n, 3, 4, 6, generator=draw, dtype=torch.float64) for _ in range(2)]
    return [*pair, torch.rand(n, 2, 3, generator=draw) < 0.5]


def normalized(x: Tensor, window: int) -> Tensor:
    out, half = torch.empty_like(x), window // 2
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            rows = slice(max(0, i - half), i + half + 1)
            part = x[:, :, rows, max(0, j - half) : j + half + 1].flatten(2)
            out[:, :, i, j] = (x[:, :, i, j] - part.mean(2)) / (part.var(2) + 1e-6).sqrt()
    return out


def reference(
    prediction: Tensor, images: Tensor, mask: Tensor, target_window: int | None = None
) -> Tensor:
    target = images if target_window is None else normalized(images, target_window)
    total, pixels = torch.zeros((), dtype=torch.float64), 0
    for b, row, column in mask.nonzero().tolist():
        where = (b, slice(None), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        total = total + (prediction[where] - target[where]).abs().sum()
        pixels += 4
    return total / (pixels + 1e-5) / 3


@pytest.mark.parametrize("window", [None, 3, 47])
def test_value_and_gradient_are_the_references(window: int | None) -> None:
    loss, want = (partial(f, target_window=window) for f in (masked_l1, reference))
    got = value_and_gradients(loss, data(), 1)
    torch.testing.assert_close(got, value_and_gradients(want, data(), 1))


def test_hand_worked_value() -> None:
    images = torch.tensor([[[[1.0, 3.0, 5.0, 7.0]] * 2]])
    mask = torch.tensor([[[False, True]]])
    value = masked_l1(torch.zeros_like(images), images, mask)
    assert value.item() == pytest.approx(6, rel=1e-5)


def test_a_flat_image_and_an_empty_mask_stay_finite() -> None:
    images = torch.full((1, 3, 8, 8), 0.7)
    assert window_normalize(images, 5).abs().max() < 1
    none = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert masked_l1(images + 1, images, none) == 0


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, partial(masked_l1, target_window=3), data(), 1, counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    prediction, images, mask = data()
    half = [prediction.to(dtype), images.float(), mask]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(masked_l1, half, 1)
    want, wanted = value_and_gradients(masked_l1, [half[0].float(), *half[1:]], 1)
    assert torch.equal(got, want)
    assert torch.equal(grads[0], wanted[0].to(dtype))


def _on_fake_cuda() -> Tensor:
    prediction = torch.randn(2, 3, 4, 4, device=DEVICE, requires_grad=True)
    mask = torch.zeros(2, 2, 2, dtype=torch.bool, device=DEVICE)
    return masked_l1(prediction, torch.randn(2, 3, 4, 4, device=DEVICE), mask, 3)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_input_is_named() -> None:
    prediction, images, mask = data()
    with pytest.raises(ValueError, match=r"\(5, 3, 4, 6\) and \(6, 3, 4, 6\)"):
        masked_l1(prediction[:5], images, mask)
    for wrong in (mask[:5], mask[:, :, :2], mask.flatten(1)):
        with pytest.raises(ValueError, match=r"mask must be \(n, h, w\), one entry per square"):
            masked_l1(prediction, images, wrong)
    with pytest.raises(ValueError, match=r"target_window must be an odd number .* got 4"):
        masked_l1(prediction, images, mask, 4)
