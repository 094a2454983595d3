"""RandomResizedCrop: torchvision's results and distribution, and one crop on every path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor

from sslzoo.random import Keys, sample_keys
from sslzoo.transforms import EvalView, RandomResizedCrop
from sslzoo.transforms.image.resample import crop_planes
from tests.golden import load

BYTE = 1 / 255 + 1e-6


def keys_of(batch: int, epoch: int = 0) -> Keys:
    return sample_keys(3, epoch, torch.arange(batch))


def photos(batch: int, height: int, width: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Noise over broad patches, saturated in places, as photographs are."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(batch, 3, 5, 5, generator=generator) * 1.6 - 0.3
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "size"), [((32, 32), 32), ((45, 60), 24), ((20, 31), 48)])
def test_matrices_equal_torchvision(interpolation: str, source: tuple[int, int], size: int) -> None:
    crop = RandomResizedCrop(size, interpolation=interpolation)  # type: ignore[arg-type]
    images = photos(12, *source, torch.float32)
    boxes = crop.draw(keys_of(12), *source)
    flips = crop.draw_flip(keys_of(12))
    got = crop_planes(images, boxes, flips, size, interpolation)  # type: ignore[arg-type]
    assert flips.any()
    assert not flips.all()
    for i, (box, flip) in enumerate(zip(boxes.tolist(), flips.tolist(), strict=True)):
        want = tv.resized_crop(
            images[i], *box, [size, size], tv.InterpolationMode(interpolation), antialias=True
        )
        want = want.flip(2) if flip else want
        torch.testing.assert_close(got[:, i], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "size"), [((90, 70), 40), ((70, 75), 96), ((32, 32), 32)])
def test_workers_crop_equals_device_crop_and_pils(
    interpolation: str, source: tuple[int, int], size: int
) -> None:
    crop = RandomResizedCrop(size, interpolation=interpolation)  # type: ignore[arg-type]
    images, keys = photos(12, *source), keys_of(12)
    boxes, flips = crop.draw(keys, *source), crop.draw_flip(keys)
    matrices = crop_planes(images, boxes, flips, size, interpolation)  # type: ignore[arg-type]
    here = crop(images, keys)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        one = Keys(keys.key[i : i + 1])
        image = Image.fromarray(images[i].permute(1, 2, 0).numpy())
        worker = crop.crop_one(image, one)
        assert worker.dtype == torch.uint8
        assert torch.equal(worker, crop.crop_one(images[i], one))
        method = getattr(Image.Resampling, interpolation.upper())
        part = image.crop((left, top, left + width, top + height)).resize((size, size), method)
        pil = torch.from_numpy(np.array(part)).permute(2, 0, 1) / 255
        pil = pil.flip(2) if flips[i] else pil
        # Bytes are rounded after each pass: half a step each, and bicubic weights beyond 1.
        bound = BYTE if interpolation == "bilinear" else 1.25 * BYTE
        for other in (matrices[:, i], here[i]):
            assert (worker / 255 - other).abs().max() <= bound
        if interpolation == "bilinear":  # PIL clips the passes of a bicubic resize elsewhere
            assert (matrices[:, i] - pil).abs().max() <= BYTE


def test_crop_without_antialias_is_the_same_for_workers() -> None:
    crop = RandomResizedCrop(20, interpolation="bicubic", antialias=False)
    images, keys = photos(4, 50, 60), keys_of(4)
    here = crop(images, keys)
    assert (here - RandomResizedCrop(20, interpolation="bicubic")(images, keys)).abs().max() > 0.1
    for i in range(4):
        one = crop.crop_one(images[i], Keys(keys.key[i : i + 1]))
        assert (one / 255 - here[i]).abs().max() <= BYTE


def test_boxes_follow_torchvisions_distribution() -> None:
    crop = RandomResizedCrop(32, scale=(0.2, 1.0))
    boxes = crop.draw(keys_of(40_000), 400, 400).double()
    top, left, height, width = boxes.unbind(1)
    assert (top >= 0).all() and (top + height <= 400).all()  # noqa: PT018
    assert (left >= 0).all() and (left + width <= 400).all()  # noqa: PT018
    reference = _reference_boxes(40_000, 400, 400, (0.2, 1.0), (3 / 4, 4 / 3))
    for ours, theirs in (
        (height * width, reference[:, 2] * reference[:, 3]),
        ((width / height).log(), (reference[:, 3] / reference[:, 2]).log()),
        (top, reference[:, 0]),
        (left, reference[:, 1]),
    ):
        # Kolmogorov and Smirnov: 1.95 sqrt(2 / n) is passed once in a thousand draws.
        assert _distance(ours, theirs) < 1.95 * math.sqrt(2 / 40_000)


def _distance(a: Tensor, b: Tensor) -> float:
    grid = torch.cat([a, b]).sort().values
    below = [torch.searchsorted(x.sort().values, grid, right=True) / len(x) for x in (a, b)]
    return float((below[0] - below[1]).abs().max())


def _reference_boxes(
    count: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """The published rule, one box after the other."""
    rng = np.random.default_rng(0)
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                boxes.append(
                    (rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w)
                )
                break
        else:
            w = min(width, round(height * ratio[1]))
            h = min(height, round(width / ratio[0]))
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return torch.tensor(boxes, dtype=torch.float64)


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [(10, 100, [0, 43, 10, 13]), (100, 10, [43, 0, 13, 10]), (30, 30, [0, 0, 30, 30])],
)
def test_no_fitting_box_falls_back_to_the_center(
    height: int, width: int, wanted: list[int]
) -> None:
    crop = RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    boxes = crop.draw(keys_of(200), height, width)
    if height != width:
        assert boxes.tolist() == [wanted] * 200
    else:  # an aspect next to 1 still rounds to the whole image
        assert wanted in boxes.tolist()


@pytest.mark.parametrize("ratio", [(0.2, 0.3), (4.0, 5.0), (3 / 4, 4 / 3)])
def test_every_box_has_an_area(ratio: tuple[float, float]) -> None:
    for size in ((1, 1), (1, 9), (9, 1), (2, 2)):
        boxes = RandomResizedCrop(4, ratio=ratio).draw(Keys(torch.arange(50)), *size)
        assert boxes[:, 2:].min() >= 1
        assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(size)).all()
        assert boxes[:, :2].min() >= 0


def test_boxes_of_images_of_several_sizes_are_each_images_own() -> None:
    crop, keys = RandomResizedCrop(8), keys_of(3)
    heights, widths = torch.tensor([40, 80, 33]), torch.tensor([50, 20, 33])
    together = crop.draw(keys, heights, widths)
    for i in range(3):
        one = crop.draw(Keys(keys.key[i : i + 1]), int(heights[i]), int(widths[i]))
        assert torch.equal(together[i], one[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_eval_view_equals_torchvision(dtype: torch.dtype) -> None:
    images = photos(2, 60, 83, dtype)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    view = EvalView(32, resize=40, mean=mean, std=std)
    resized = tv.center_crop(tv.resize(images, [40], antialias=True), [32, 32])
    want = tv.normalize(tv.to_dtype(resized, torch.float32, scale=True), mean, std)
    torch.testing.assert_close(view(images), want, rtol=0, atol=1e-5)


def test_eval_view_in_a_worker_equals_the_device() -> None:
    images = photos(1, 60, 83)
    view = EvalView(32, resize=40, interpolation="bicubic")
    one = view.crop_one(Image.fromarray(images[0].permute(1, 2, 0).numpy()))
    assert (view.finish(one[None]) - view(images)).abs().max() <= BYTE
    whole = images[:, :, :, 12:72] / 255
    torch.testing.assert_close(EvalView(60)(images), whole, rtol=0, atol=1e-6)


def test_eval_view_equals_simclrs() -> None:
    golden = load("simclr/augment.npz")
    image = torch.from_numpy(golden["big"]).permute(2, 0, 1)[None]
    for name, size, source in (
        ("eval_16", 16, image),
        ("eval_32_from_byte", 32, (image * 255).to(torch.uint8)),
    ):
        got = EvalView(size, fraction=0.875, interpolation="bicubic")(source)
        want = torch.from_numpy(golden[name]).permute(2, 0, 1)[None]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="nearest"):
        RandomResizedCrop(8, interpolation="nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must have"):
        RandomResizedCrop(8, scale=(0.5, 0.1))
    with pytest.raises(ValueError, match="at least 64 pixels"):
        EvalView(64)(photos(1, 60, 83))
