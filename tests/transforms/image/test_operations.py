"""Color, blur, solarize and normalize: equal to torchvision and to the official code's arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from sslzoo.random import sample_keys
from sslzoo.transforms import EvalView, byol_views, simclr_views
from sslzoo.transforms.image.affine import affine_
from sslzoo.transforms.image.blur import (
    GaussianBlur,
    _blur_by_bands,
    _blur_by_samples,
    gaussian_blur_,
    pil_blur_,
)
from sslzoo.transforms.image.color import (
    ColorJitter,
    Grayscale,
    _extremes,
    fast_hue_,
    grayscale_,
    hsv_saturation_,
    hue_,
)
from sslzoo.transforms.image.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize_
from sslzoo.transforms.image.solarize import Solarize, solarize_
from sslzoo.transforms.image.translate import translate
from tests.golden import assert_close_to_golden, load

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def photos(batch: int = 6, size: int = 17) -> Tensor:
    images = torch.rand(batch, 3, size, size + 2, generator=torch.Generator().manual_seed(1))
    images[:, :, 0, :4] = torch.tensor([0.0, 1.0, 0.5, 0.5])  # gray pixels, black and white
    images[:, 1, 1, :4] = images[:, 0, 1, :4]  # two channels equal
    return images


def planes_of(image: Any) -> Tensor:
    return torch.as_tensor(image).float().permute(2, 0, 1)[:, None].clone()


def image_of(planes: Tensor) -> Tensor:
    return planes[:, 0].permute(1, 2, 0)


def jitter_by(
    jitter: ColorJitter, planes: Tensor, operation: int | list[int], factors: list[float]
) -> Tensor:
    """One operation, or all four in the order given, with the same factors for all samples."""
    batch = planes.shape[1]
    values = torch.tensor([factors]).expand(batch, -1)
    if isinstance(operation, int):
        order = torch.full((batch, 4), HUE)
        order[:, 0] = operation
        values = torch.where(torch.arange(4) == operation, values, 0.0)
    else:
        order = torch.tensor([operation]).expand(batch, -1)
    applied = torch.ones(batch, dtype=torch.bool)
    return jitter.apply(planes.clone(), jitter.coefficients(values, order, applied))


@pytest.mark.parametrize(
    ("operation", "reference"),
    [
        (BRIGHTNESS, tv.adjust_brightness),
        (CONTRAST, tv.adjust_contrast),
        (SATURATION, tv.adjust_saturation),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
def test_jitter_equals_torchvision(
    operation: int, reference: Callable[..., Tensor], factor: float
) -> None:
    jitter = ColorJitter(0.8, 0.8, 0.8, 0.2)
    images = photos()
    got = jitter_by(jitter, images.transpose(0, 1), operation, [factor] * 4)
    want = reference(images, factor)
    torch.testing.assert_close(got.transpose(0, 1), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.0, 0.07, 0.33, 0.5])
def test_hue_equals_torchvision(turns: float) -> None:
    images = photos()
    planes = images.transpose(0, 1).clone()
    hue_(planes, torch.full((6,), turns))
    want = tv.adjust_hue(images, turns)
    torch.testing.assert_close(planes.transpose(0, 1), want, rtol=0, atol=1e-5)


def test_fast_hue_is_exact_for_thirds_and_keeps_the_mean() -> None:
    images = photos().transpose(0, 1)
    for turns, shift in ((0.0, 0), (1 / 3, 1), (2 / 3, 2)):
        planes = images.clone()
        fast_hue_(planes, torch.full((6,), turns))
        torch.testing.assert_close(planes, images.roll(shift, 0), rtol=0, atol=1e-5)
        exact = images.clone()
        hue_(exact, torch.full((6,), turns))
        torch.testing.assert_close(planes, exact, rtol=0, atol=1e-5)
    planes = images.clone()
    fast_hue_(planes, torch.linspace(-0.5, 0.5, 6))
    torch.testing.assert_close(planes.mean(0), images.mean(0), rtol=0, atol=1e-5)
    pale, exact = 0.5 + 0.02 * images, 0.5 + 0.02 * images
    fast_hue_(pale, torch.full((6,), 0.1))
    hue_(exact, torch.full((6,), 0.1))
    assert (pale - exact).abs().max() < 0.006


def test_grayscale_equals_torchvision() -> None:
    images = photos()
    chosen = torch.tensor([True, False, True, False, False, True])
    got = Grayscale(0.5).apply(images.transpose(0, 1).clone(), chosen).transpose(0, 1)
    want = tv.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(got[chosen], want[chosen], rtol=0, atol=1e-6)
    assert torch.equal(got[~chosen], images[~chosen])


def test_solarize_equals_torchvision_and_touches_the_chosen_only() -> None:
    images = photos()
    chosen = torch.arange(6) % 2 == 0
    got = Solarize(0.5).apply(images.transpose(0, 1).clone(), chosen).transpose(0, 1)
    assert torch.equal(got[chosen], tv.solarize(images, 0.5)[chosen])
    assert torch.equal(got[~chosen], images[~chosen])


@pytest.mark.parametrize("size", [9, 90])
def test_both_ways_to_blur_are_equal(size: int) -> None:
    images = torch.rand(3, 4, size, size + 2, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.5, 1.1, 2.0])
    by_taps, by_bands = images.clone(), images.clone()
    _blur_by_samples(by_taps, sigma, 11)
    _blur_by_bands(by_bands, sigma, 11)
    torch.testing.assert_close(by_taps, by_bands, rtol=0, atol=1e-6)


def test_translation_is_a_crop_of_the_mirrored_image() -> None:
    images = photos()
    shift = torch.tensor([[0, 0], [4, 0], [0, -4], [-3, 2], [1, 1], [-4, -4]])
    got = translate(images.transpose(0, 1), shift).transpose(0, 1)
    padded = tv.pad(images, [4, 4], padding_mode="reflect")
    height, width = images.shape[2:]
    for i, (down, right) in enumerate(shift.tolist()):
        want = padded[i, :, 4 - down : 4 - down + height, 4 - right : 4 - right + width]
        assert torch.equal(got[i], want)


def test_affine_equals_torchvision() -> None:
    images = photos()[..., :17]
    turn = torch.tensor([0.0, 20.0, -20.0, 7.0, 0.0, 90.0])
    shear = torch.tensor([0.0, 0.0, 15.0, -20.0, 10.0, 0.0])
    planes = images.transpose(0, 1).clone()
    affine_(planes, turn.deg2rad(), shear.deg2rad())
    for image, got, t, s in zip(images, planes.transpose(0, 1), turn, shear, strict=True):
        want = tv.affine(image, float(t), [0, 0], 1.0, [float(s), 0.0], InterpolationMode.BILINEAR)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_a_samples_blur_does_not_depend_on_the_others() -> None:
    """Bit for bit, although each sample multiplies only the taps of its own sigma."""
    planes, sigma = torch.rand(3, 4, 97, 80), torch.tensor([0.1, 0.5, 1.0, 2.0])
    whole = planes.clone()
    _blur_by_samples(whole, sigma, 11)
    for row in range(4):
        alone = planes[:, row : row + 1].clone()
        _blur_by_samples(alone, sigma[row : row + 1], 11)
        assert torch.equal(alone, whole[:, row : row + 1])


def test_zero_padded_blur_equals_torchvision_inside() -> None:
    images = photos(3, 90)
    planes = images.transpose(0, 1).clone()
    sigma = torch.tensor([0.1, 0.9, 2.0])
    gaussian_blur_(planes, sigma, 11)
    for i in range(3):
        want = tv.gaussian_blur(images[i], [23, 23], [float(sigma[i])] * 2)
        got = planes[:, i, 11:-11, 11:-11]
        torch.testing.assert_close(got, want[:, 11:-11, 11:-11], rtol=0, atol=1e-5)


def test_operations_equal_simclrs() -> None:
    golden = load("simclr/augment.npz")
    hyper = golden["meta"]["hyper"]
    image = planes_of(golden["image"])
    unclipped = ColorJitter(0.8, 0.8, 0.8, 0.2, formulas="tensorflow", clip=False)
    additive = ColorJitter(0.8, 0.8, 0.8, 0.2, formulas="tensorflow", additive=True, clip=False)
    factors = [hyper["b2"], hyper["c"], hyper["s"], hyper["h"]]
    results = {
        "brightness_v2": jitter_by(unclipped, image, BRIGHTNESS, factors),
        "brightness_v1": jitter_by(additive, image, BRIGHTNESS, [hyper["b1"], *factors[1:]]),
        "contrast": jitter_by(unclipped, image, CONTRAST, factors),
        "saturation": jitter_by(unclipped, image, SATURATION, factors),
        "hue": in_place(hue_, image, torch.tensor([hyper["h"]])),
        "gray": in_place(grayscale_, image),
    }
    for sigma in ("0.3", "1.0", "1.9"):
        results[f"blur_{sigma}"] = in_place(
            gaussian_blur_, image, torch.tensor([float(sigma)]), hyper["blur_kernel_size"] // 2
        )
    for name, planes in results.items():
        assert_close_to_golden(image_of(planes), golden[name], 1e-5)


def in_place(change: Callable[..., Any], planes: Tensor, *values: Any) -> Tensor:
    changed = planes.clone()
    change(changed, *values)
    return changed


def test_operations_equal_byols() -> None:
    golden = load("byol/augment.npz")
    hyper = golden["meta"]["hyper"]
    image = planes_of(golden["image"])
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8, "tensorflow", additive=True, clip=False)
    factors = [hyper["b"], hyper["c"], hyper["s"], hyper["h"]]
    results = {
        "brightness": jitter_by(jitter, image, BRIGHTNESS, factors),
        "contrast": jitter_by(jitter, image, CONTRAST, factors),
        "saturation": jitter_by(jitter, image, SATURATION, factors),
        "hue": in_place(hue_, image, torch.tensor([hyper["h"]])),
        "rgb_back": in_place(hue_, image, torch.zeros(1)),
        "gray": in_place(grayscale_, image),
        "solarize": in_place(solarize_, image),
        "normalized": in_place(normalize_, image, IMAGENET_MEAN, IMAGENET_STD),
    }
    for sigma in ("0.2", "1.1", "2.0"):
        results[f"blur_{sigma}"] = in_place(
            gaussian_blur_, image, torch.tensor([float(sigma)]), int(hyper["blur_kernel_size"] / 2)
        )
    for name, planes in results.items():
        assert_close_to_golden(image_of(planes), golden[name], 1e-5)
    value, chroma = _extremes(image)
    assert_close_to_golden(value[0], golden["hsv"][..., 2], 1e-6)
    assert_close_to_golden((chroma / value)[0], golden["hsv"][..., 1], 1e-6)
    normalized = EvalView(8, mean=IMAGENET_MEAN, std=IMAGENET_STD)(image.transpose(0, 1)[..., :8])
    assert_close_to_golden(normalized[0].permute(1, 2, 0), golden["normalized"][:, :8], 1e-5)


def test_blur_and_solarize_equal_pils() -> None:
    golden = load("augment/pil_ops.npz")
    image = planes_of(golden["image"]) / 255
    for sigma in ("0.1", "0.7", "2.0"):
        got = in_place(pil_blur_, image, torch.tensor([float(sigma)]), 2.0)
        want = torch.from_numpy(golden[f"blur_{sigma}"])
        assert torch.equal((image_of(got) * 255).round(), want.to(image.dtype))
    assert_close_to_golden(image_of(in_place(solarize_, image)) * 255, golden["solarize"], 1e-5)


@pytest.mark.parametrize("size", [(32, 32), (7, 40), (2, 3)])
def test_blur_equals_pillows_to_the_byte_for_every_sigma(size: tuple[int, int]) -> None:
    sigma = torch.arange(0.1, 6, 0.05)
    noise = np.random.default_rng(0).integers(0, 256, (len(sigma), *size, 3), dtype=np.uint8)
    planes = torch.from_numpy(noise).permute(3, 0, 1, 2) / 255
    pil_blur_(planes, sigma, 6.0)
    got = (planes * 255).round().byte().permute(1, 2, 3, 0).numpy()
    for image, width, blurred in zip(noise, sigma.tolist(), got, strict=True):
        want = Image.fromarray(image).filter(ImageFilter.GaussianBlur(width))
        np.testing.assert_array_equal(blurred, np.asarray(want))


def test_blur_does_not_depend_on_the_other_samples() -> None:
    images = photos(3, 80).transpose(0, 1)
    sigma = torch.tensor([0.3, 1.0, 1.9])
    for blur, bound in ((gaussian_blur_, 4), (pil_blur_, 2.0)):
        together = in_place(blur, images, sigma, bound)
        for i in range(3):
            alone = in_place(blur, images[:, i : i + 1], sigma[i : i + 1], bound)
            torch.testing.assert_close(alone[:, 0], together[:, i], rtol=0, atol=1e-6)


def test_saturation_in_hsv_stops_at_full_color() -> None:
    planes = planes_of([[[0.5, 0.25, 0.4], [0.3, 0.3, 0.3], [0.0, 0.0, 0.0]]])
    hsv_saturation_(planes, torch.tensor([10.0]))
    want = torch.tensor([[[0.5, 0.0, 0.3], [0.3, 0.3, 0.3], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(image_of(planes), want)


# The stored arrays carry neither the factors that were drawn nor, it turned out, the order in
# which the operations ran (their names' digits are not it: brightness comes last in "v1_0123",
# where all three channels end at the same ceiling 0.24604). Both were recovered by fitting these
# four numbers to the 504 of each array.
SIMCLR_JITTERS = {
    "v1_0123": ([1, 2, 3, 0], [-0.7539555, 1.3447265, 1.1847306, 0.0365787]),
    "v1_3102": ([0, 3, 1, 2], [0.6778137, 0.4213599, 1.0932363, -0.0529362]),
    "v1_2031": ([0, 2, 3, 1], [-0.2060965, 0.4083891, 1.712183, 0.0462541]),
    "v2_0123": ([1, 0, 2, 3], [1.1917581, 0.8989019, 0.4003158, -0.1362408]),
    "v2_3102": ([0, 2, 1, 3], [0.2440208, 0.2497542, 0.9173734, 0.1293893]),
    "v2_2031": ([1, 0, 2, 3], [1.7098869, 0.3063689, 1.1373164, -0.0120353]),
}


@pytest.mark.parametrize("name", SIMCLR_JITTERS)
def test_jitter_in_order_with_clips_equals_simclrs(name: str) -> None:
    golden = load("simclr/augment.npz")
    order, factors = SIMCLR_JITTERS[name]
    jitter = ColorJitter(0.8, 0.8, 0.8, 0.2, 0.8, "tensorflow", additive=name.startswith("v1"))
    got = image_of(jitter_by(jitter, planes_of(golden["image"]), order, factors))
    assert_close_to_golden(got, golden[f"jitter_simclr{name}"], 1e-5)
    other = image_of(jitter_by(jitter, planes_of(golden["image"]), order[::-1], factors))
    assert (other - torch.from_numpy(golden[f"jitter_simclr{name}"])).abs().max() > 0.01


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("additive", [False, True])
def test_one_turn_for_all_is_the_turn_of_each(additive: bool, clip: bool) -> None:
    """What an accelerator runs, against the steps of each sample in their order."""
    jitter = ColorJitter(0.8, 0.8, 0.8, 0.2, 0.8, additive=additive, clip=clip)
    planes = torch.rand(3, 400, 6, 5, generator=torch.Generator().manual_seed(0))
    (coefficients,) = jitter.draw(sample_keys(0, 0, torch.arange(400)))
    coefficients[:8, :, 4] = 0  # no turn: nothing else may be lost
    wanted = jitter.apply(planes.clone(), coefficients)
    got = jitter.turn_once(planes.clone(), coefficients)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)
    assert (got - planes).abs().amax((0, 2, 3)).gt(0.01).float().mean() > 0.7


def test_one_turn_is_for_operations_that_keep_to_the_range() -> None:
    assert ColorJitter(0.8, 0.8, 0.8, 0.2).keeps_range
    assert not ColorJitter(0.8, 0.8, 0.8, 0.2, fast_hue=True).keeps_range
    assert not ColorJitter(0.8, 0.8, 0.8, 0.2, formulas="tensorflow").keeps_range


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_solarize_inverts_from_the_threshold_on(threshold: float) -> None:
    image = torch.linspace(0, 1, 3 * 4 * 7).view(3, 1, 4, 7)
    image[0, 0, 0, 0] = threshold
    got = Solarize(1.0, threshold).apply(image.clone(), torch.ones(1, dtype=torch.bool))
    wanted = [1 - x if x >= threshold else x for x in image.flatten().tolist()]
    torch.testing.assert_close(got.flatten(), torch.tensor(wanted))


@pytest.mark.parametrize("threshold", [1, 64, 128, 200, 255])
def test_a_threshold_of_pil_is_a_half_less_by_255(threshold: int) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(16, 16)
    theirs = ImageOps.solarize(Image.fromarray(values.numpy()), threshold)
    planes = (values / 255).view(1, 1, 16, 16)
    op = Solarize(1.0, (threshold - 0.5) / 255)
    ours = op.apply(planes, torch.ones(1, dtype=torch.bool))[0, 0] * 255
    assert torch.equal(ours.round().to(torch.uint8), torch.from_numpy(np.array(theirs)))


@pytest.mark.parametrize("threshold", [128, -0.1, float("nan")])
def test_other_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got"):
        Solarize(0.2, threshold)


@pytest.mark.parametrize(
    ("kernel_size", "height", "radius"),
    [
        (None, 40, 2),
        (None, 59, 2),
        (None, 60, 3),
        (None, 19, 0),
        (4, 40, 2),
        (5, 40, 2),
        (1, 40, 0),
    ],
)
def test_the_kernel_is_odd_and_by_default_a_tenth_of_the_height(
    kernel_size: int | None, height: int, radius: int
) -> None:
    """An impulse shows the kernel: size // 2 pixels to each side, as in SimCLR's code."""
    image = torch.zeros(1, 1, height, 31)
    image[0, 0, height // 2, 15] = 1.0
    blur = GaussianBlur(1.0, (50.0, 50.0), kernel_size)
    got = blur.apply(image, torch.ones(1, dtype=torch.bool), torch.tensor([50.0]))[0, 0]
    assert (got > 0).sum() == (2 * radius + 1) ** 2
    assert (
        got[height // 2 - radius : height // 2 + radius + 1, 15 - radius : 16 + radius] > 0
    ).all()


def test_wrong_kernels_are_named() -> None:
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got 0"):
        GaussianBlur(0.5, kernel_size=0)
    for views in (simclr_views, byol_views):
        with pytest.raises(ValueError, match="left out with blur=False, got 3"):
            views(blur=False, blur_kernel=3)
        kernels = [op.kernel_size for view in views(blur_kernel=3).views for op in view.ops
                   if isinstance(op, GaussianBlur)]  # fmt: skip
        assert kernels == [3, 3]
    (solarize,) = [op for view in byol_views(solarize_threshold=0.3).views for op in view.ops
                   if isinstance(op, Solarize)]  # fmt: skip
    assert solarize.threshold == 0.3
