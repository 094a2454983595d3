"""Masked pixels against a slow reference, the official arrays, and on ranks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from sslzoo.losses import masked_pixels, patchify
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def reference(
    prediction: Tensor, images: Tensor, masked: Tensor, patch_size: int, normalize: bool
) -> Tensor:
    """Patch by patch, cut out of the image by its corner."""
    across = images.shape[3] // patch_size
    errors = []
    for row, image, indices in zip(prediction, images, masked, strict=True):
        for j in indices.tolist():
            top, left = patch_size * (j // across), patch_size * (j % across)
            patch = image[:, top : top + patch_size, left : left + patch_size]
            target = patch.permute(1, 2, 0).flatten()
            if normalize:
                variance = (target - target.mean()).square().sum() / (len(target) - 1)
                target = (target - target.mean()) / (variance + 1e-6).sqrt()
            errors.append((row[j] - target).square().mean())
    return torch.stack(errors).mean()


def data(n: int = 6) -> list[Tensor]:
    """Predictions (n, 6, 12), images (n, 3, 4, 6), three masked patches each."""
    generator = torch.Generator().manual_seed(n)
    images = torch.randn(n, 3, 4, 6, generator=generator, dtype=torch.float64)
    prediction = torch.randn(n, 6, 12, generator=generator, dtype=torch.float64)
    masked = torch.rand(n, 6, generator=generator).argsort(1)[:, :3]
    return [prediction, images, masked]


@pytest.mark.parametrize("normalize", [True, False])
def test_value_and_gradient_are_the_references(normalize: bool) -> None:
    options = {"patch_size": 2, "normalize": normalize}
    got = value_and_gradients(partial(masked_pixels, **options), data(), 1)
    torch.testing.assert_close(got, value_and_gradients(partial(reference, **options), data(), 1))


def test_hand_worked_value() -> None:
    images = torch.tensor([[[[1.0, 3.0], [9.0, 9.0]]]])
    prediction = torch.zeros(1, 1, 4)
    masked = torch.tensor([[0]])
    plain = masked_pixels(prediction, images, masked, 2, normalize=False)
    assert plain.item() == pytest.approx((1 + 9 + 81 + 81) / 4)
    normalized = masked_pixels(prediction, images, masked, 2)  # squares sum to n - 1
    assert normalized.item() == pytest.approx(3 / 4, abs=1e-5)


def test_kept_patches_do_not_matter() -> None:
    _, _, masked = data()
    _, (grad,) = value_and_gradients(partial(masked_pixels, patch_size=2), data(), 1)
    kept = torch.ones(6, 6, dtype=torch.bool).scatter(1, masked, False)
    assert grad[kept].abs().max() == 0
    assert (grad[~kept].abs().sum(-1) > 0).all()


def test_a_flat_patch_stays_finite() -> None:
    prediction, images, masked = data()
    value = masked_pixels(prediction, torch.ones_like(images), masked, 2)
    assert value.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    prediction, images, masked = data()
    half = [prediction.to(dtype), images.float(), masked]
    loss = partial(masked_pixels, patch_size=2)
    want, wanted = value_and_gradients(loss, [half[0].float(), *half[1:]], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(loss, half, 1)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(grads[0], wanted[0].to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, partial(masked_pixels, patch_size=2), data(), 1, counts)


def _on_fake_cuda() -> Tensor:
    prediction = torch.randn(2, 4, 12, device=DEVICE, requires_grad=True)
    images = torch.randn(2, 3, 4, 4, device=DEVICE)
    return masked_pixels(prediction, images, torch.zeros(2, 3, dtype=torch.int64, device=DEVICE), 2)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_input_is_named() -> None:
    prediction, images, masked = data()
    with pytest.raises(ValueError, match=r"\(6, 5, 12\) and \(6, 6, 12\)"):
        masked_pixels(prediction[:, :5], images, masked, 2)
    with pytest.raises(ValueError, match=r"R\) with R above 0, got \(6, 0\)"):
        masked_pixels(prediction, images, masked[:, :0], 2)
    with pytest.raises(ValueError, match=r"multiples of the patch size 4, got \(4, 6\)"):
        patchify(images, 4)


@pytest.mark.parametrize("name", ["forward", "forward_normpix"])
def test_golden(name: str) -> None:
    z, images = load(f"mae/{name}.npz"), torch.tensor(load("mae/forward.npz")["img"]).float()
    hyper = z["meta"]["hyper"]
    assert_close_to_golden(patchify(images, hyper["patch_size"]), z["target"], 1e-6)
    masked = torch.tensor(z["noise"]).argsort(1)[:, int(16 * (1 - hyper["mask_ratio"])) :]
    assert (torch.tensor(z["mask"]).gather(1, masked) == 1).all()
    loss = masked_pixels(
        torch.tensor(z["pred"]), images, masked, hyper["patch_size"], hyper["norm_pix_loss"]
    )
    assert_close_to_golden(loss, z["loss"], 1e-5)
