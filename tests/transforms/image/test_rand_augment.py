"""RandAugment: each operation equals timm's on PIL images to the byte, and so does the whole."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment as reference
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from sslzoo.random import sample_keys
from sslzoo.transforms import mae_fine_tune_views
from sslzoo.transforms.image.erasing import RandomErasing
from sslzoo.transforms.image.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from sslzoo.transforms.image.pil_operations import Operation, operate_
from sslzoo.transforms.image.rand_augment import RandAugment, arguments
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

FILL = (124, 116, 104)
NAMES = reference._RAND_INCREASING_TRANSFORMS
SIZES = [(32, 32), (33, 33), (17, 24), (64, 48), (5, 7)]


class _Script:
    """Stands for timm's `random`: gives these numbers in this order."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)

    def gauss(self, mean: float, deviation: float) -> float:
        return mean + deviation * self.numbers.pop(0)


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) bytes: noise, a smooth image of few contrasts, one color or black and white."""
    draw = np.random.default_rng(seed)
    if seed % 4 == 0:
        return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if seed % 4 == 1:
        small = Image.fromarray(draw.integers(20, 200, (4, 5, 3), dtype=np.uint8))
        return np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    if seed % 4 == 2:
        return np.full((height, width, 3), draw.integers(0, 256, 3, dtype=np.uint8))
    return 255 * draw.integers(0, 2, (height, width, 3), dtype=np.uint8)


def planes_of(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2).contiguous()


def images_of(planes: Tensor) -> np.ndarray:
    return planes.permute(1, 2, 3, 0).numpy()


def timm_argument(
    monkeypatch: pytest.MonkeyPatch, name: str, level: float, sign: int
) -> tuple[float, ...]:
    monkeypatch.setattr(reference, "random", _Script(0.75 if sign < 0 else 0.25))
    function = reference.LEVEL_TO_ARG[name]
    return () if function is None else tuple(function(level, {}))


def timm_image(name: str, image: np.ndarray, argument: tuple[float, ...]) -> np.ndarray:
    """timm's operation; black where Pillow 13 refuses to keep no bit."""
    if name.startswith("Posterize") and argument[0] == 0:
        return np.zeros_like(image)
    how: dict[str, Any] = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
    return np.array(reference.NAME_TO_OP[name](Image.fromarray(image), *argument, **how))


@pytest.mark.parametrize("code", range(len(NAMES)), ids=NAMES)
def test_operations_equal_pils_to_the_byte(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name, draw = NAMES[code], random.Random(code)
    for height, width in SIZES:
        images = [photo(seed, height, width) for seed in range(16)]
        levels = [draw.choice([0.0, 10.0, draw.uniform(0, 10), draw.gauss(9, 0.5)]) for _ in images]
        given = [
            timm_argument(monkeypatch, name, max(0.0, min(level, 10.0)), draw.choice([-1, 1]))
            for level in levels
        ]
        pixels = planes_of(images)
        argument = torch.tensor([x[0] if x else 0.0 for x in given], dtype=torch.float64)
        operate_(pixels, torch.full((16,), code), argument, FILL)
        wanted = [timm_image(name, x, how) for x, how in zip(images, given, strict=True)]
        assert np.array_equal(images_of(pixels), np.stack(wanted))


def test_all_angles_shears_and_shifts_equal_pils(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a place in the source is whole, a rounding of the matrix would show."""
    image = photo(0, 33, 33)
    for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        levels = torch.arange(0, 10.01, 0.125).double().tolist()
        given = [timm_argument(monkeypatch, name, x, s) for x in levels for s in (-1, 1)]
        pixels = planes_of([image] * len(given))
        argument = torch.tensor([x[0] for x in given], dtype=torch.float64)
        operate_(pixels, torch.full((len(given),), NAMES.index(name)), argument, FILL)
        wanted = np.stack([timm_image(name, image, how) for how in given])
        assert np.array_equal(images_of(pixels), wanted), name


@pytest.mark.parametrize("size", [9, 32])
def test_random_angles_equal_pils(size: int) -> None:
    """An odd image's center lies on a pixel's, where the smallest difference would cut off one."""
    angles = np.random.default_rng(0).uniform(-30, 30, 2000)
    image = photo(0, size, size)
    pixels = planes_of([image] * len(angles))
    rotate = torch.full((len(angles),), int(Operation.ROTATE))
    operate_(pixels, rotate, torch.from_numpy(angles), FILL)
    wanted = np.stack([timm_image("Rotate", image, (float(x),)) for x in angles])
    assert np.array_equal(images_of(pixels), wanted)


def test_operations_are_mixed_in_a_batch_and_none_leaves_it() -> None:
    images = [photo(seed, 20, 20) for seed in range(16)]
    operation = torch.arange(-1, 15)
    argument = torch.full((16,), 0.3, dtype=torch.float64)
    together = planes_of(images)
    operate_(together, operation, argument, FILL)
    assert np.array_equal(images_of(together)[0], images[0])
    for row in range(1, 16):
        alone = planes_of(images)[:, row : row + 1].clone()
        operate_(alone, operation[row : row + 1], argument[:1], FILL)
        assert torch.equal(alone[:, 0], together[:, row])


def test_arguments_equal_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [i / 16 for i in range(161)] + [9 + 0.1 * i for i in range(-30, 10)]
    for code, name in enumerate(NAMES):
        for sign in (-1, 1):
            wanted = [timm_argument(monkeypatch, name, level, sign) for level in levels]
            got = arguments(
                torch.full((len(levels),), code),
                torch.tensor(levels, dtype=torch.float64),
                torch.full((len(levels),), sign < 0),
            )
            assert got.tolist() == [x[0] if x else 0.0 for x in wanted], name


def test_the_names_are_timms_in_order() -> None:
    ours = [x.name.replace("_", "").lower() for x in Operation if x is not Operation.NONE]
    theirs = [x.replace("Increasing", "").replace("Rel", "").lower() for x in NAMES]
    assert ours == theirs


def mae_transform() -> Any:
    """What util/datasets.py of facebookresearch/mae builds, with main_finetune.py's defaults."""
    return create_transform(
        input_size=40,
        is_training=True,
        color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def test_the_recipe_has_the_numbers_of_maes_transform() -> None:
    crop, flip, augment, _, normalize, erase = mae_transform().transforms
    (view,) = mae_fine_tune_views(40).views
    ours, norm, erasing = view.ops
    assert (view.crop.scale, view.crop.ratio) == (crop.scale, crop.ratio)
    assert str(crop.interpolation).endswith(view.crop.interpolation.upper())
    assert view.crop.flip == flip.p
    assert isinstance(ours, RandAugment)
    assert (ours.num_ops, len(NAMES)) == (augment.num_layers, len(augment.ops))
    assert augment.choice_weights is None
    for name, op in zip(NAMES, augment.ops, strict=True):
        assert (op.name, op.prob, op.magnitude) == (name, ours.p, ours.magnitude)
        assert (op.magnitude_std, op.magnitude_max) == (ours.magnitude_std, None)
        assert op.kwargs == {"fillcolor": ours.fill, "resample": Image.Resampling.BICUBIC}
    assert isinstance(norm, Normalize)
    torch.testing.assert_close(torch.tensor(norm.mean), normalize.mean)
    torch.testing.assert_close(torch.tensor(norm.std), normalize.std)
    assert isinstance(erasing, RandomErasing)
    assert (erasing.p, erasing.area) == (erase.probability, (erase.min_area, erase.max_area))
    assert (math.log(erasing.aspect), -math.log(erasing.aspect)) == pytest.approx(
        erase.log_aspect_ratio
    )
    assert (erase.min_count, erase.max_count, erase.per_pixel) == (1, 1, True)


def test_the_whole_equals_timms_given_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two operations with timm's own AugmentOp, fed our probability, noise and sign."""
    augment, size, batch = RandAugment(fill=FILL), 24, 64
    images = [photo(seed, size, size) for seed in range(batch)]
    keys = sample_keys(3, 1, torch.arange(batch))
    chosen = keys.integers("operation", 15, 2)
    noise = keys.normal("magnitude", 2).double()
    numbers = [keys.uniform("apply", 2), noise, keys.uniform("negative", 2)]
    got = augment.apply(planes_of(images) / 255, *augment.draw(keys))
    theirs = mae_transform().transforms[2]
    wanted = []
    for row, image in enumerate(images):
        now: Any = Image.fromarray(image)
        for step in range(2):
            skip, gauss, minus = (float(x[row, step]) for x in numbers)
            # Below 0.5 we apply and negate; timm negates above it.
            monkeypatch.setattr(reference, "random", _Script(skip, gauss, 1 - minus))
            op = theirs.ops[int(chosen[row, step])]
            black = op.name == "PosterizeIncreasing" and gauss >= 2 and skip < 0.5
            now = Image.new("RGB", now.size) if black else op(now)
        wanted.append(np.array(now))
    assert np.array_equal(images_of((got * 255).round().to(torch.uint8)), np.stack(wanted))


def test_draws_have_their_distributions() -> None:
    augment = RandAugment()
    operation, argument = augment.draw(sample_keys(0, 0, torch.arange(50_000)))
    none = operation == Operation.NONE
    assert abs(none.double().mean() - 0.5) < 4 * math.sqrt(0.25 / none.numel())
    both = none.all(1).double().mean()
    assert abs(both - 0.25) < 4 * math.sqrt(0.1875 / len(none)), "each by itself"
    counts = operation[~none].bincount(minlength=15)
    expected = counts.sum() / 15
    assert ((counts - expected) ** 2 / expected).sum() < 36.1  # chi-squared of 14: 1 in a thousand
    turns = argument[operation == Operation.ROTATE]
    assert abs((turns > 0).double().mean() - 0.5) < 4 * math.sqrt(0.25 / len(turns))
    level = (turns.abs() / 3 - 9) / 0.5
    unit = (level.sort().values / math.sqrt(2)).erf() / 2 + 0.5
    grid = (torch.arange(len(unit)) + 0.5) / len(unit)
    below = level.sort().values < 2  # the rest is cut to magnitude 10
    assert (unit - grid)[below].abs().max() < 1.95 / math.sqrt(len(unit))
    assert turns.abs().max() == 30


def test_values_are_rounded_to_bytes_and_gradients_do_not_pass() -> None:
    views = mae_fine_tune_views(16, erasing=0.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    images = torch.rand(8, 3, 16, 16, requires_grad=True)
    (view,) = views(images, sample_keys(0, 0, torch.arange(8)))
    assert not view.requires_grad
    torch.testing.assert_close(view * 255, (view * 255).round(), rtol=0, atol=1e-4)


def fine_tune_views(rows: slice) -> Tensor:
    """The views of some of 12 images."""
    images = torch.from_numpy(np.stack([photo(seed, 48, 40) for seed in range(12)]))
    keys = sample_keys(5, 2, torch.arange(12)[rows])
    return mae_fine_tune_views(32)(images.permute(0, 3, 1, 2)[rows], keys)[0]


def views_on_rank(rank: int) -> Tensor:
    return fine_tune_views(slice(rank * 5, rank * 7 + 5))


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    together = torch.cat(ranks(2, views_on_rank))
    torch.testing.assert_close(together, fine_tune_views(slice(12)), rtol=0, atol=1e-6)


def views_on_device() -> None:
    images = torch.zeros(40, 3, 48, 40, dtype=torch.uint8, device=DEVICE)
    keys = sample_keys(0, 0, torch.zeros(40, dtype=torch.int64, device=DEVICE))
    assert mae_fine_tune_views(32)(images, keys)[0].device.type == DEVICE


def test_the_host_does_not_wait() -> None:
    assert syncs(views_on_device) == []


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"magnitude must be in \[0, 10.0\], got 11"):
        RandAugment(11)
    with pytest.raises(ValueError, match=r"num_ops must be at least 1, got 0"):
        RandAugment(num_ops=0)
    with pytest.raises(ValueError, match="three bytes, got"):
        RandAugment(fill=(1, 2))
    augment = RandAugment()
    draws = augment.draw(sample_keys(0, 0, torch.arange(2)))
    with pytest.raises(ValueError, match="3 channels"):
        augment.apply(torch.zeros(1, 2, 4, 4), *draws)
