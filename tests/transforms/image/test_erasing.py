"""Random erasing: timm's rectangles for the same draws, noise inside them alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm.data.random_erasing as reference
import torch
from torch import Tensor

from sslzoo.random import Keys, sample_keys
from sslzoo.transforms.image.erasing import RandomErasing, rectangles

SIZES = [(32, 32), (40, 24), (224, 224), (3, 3)]


class _Script:
    """Stands for timm's `random`: our numbers of one sample, in the order in which it asks."""

    def __init__(self, apply: Tensor, unit: Tensor, place: Tensor) -> None:
        self.apply = float(apply)
        self.unit, self.place = unit.double().flatten().tolist(), place.double().tolist()

    def random(self) -> float:
        return self.apply

    def uniform(self, low: float, high: float) -> float:
        return float(low + (high - low) * self.unit.pop(0))

    def randint(self, low: int, high: int) -> int:
        return low + math.floor(self.place.pop(0) * (high - low + 1))


def timm_mask(monkeypatch: pytest.MonkeyPatch, height: int, width: int, draws: _Script) -> Tensor:
    """Where timm erases, (H, W) bool."""

    def marked(per_pixel: bool, rand_color: bool, patch_size: Any, **_: Any) -> Tensor:
        assert per_pixel
        return torch.ones(patch_size)

    monkeypatch.setattr(reference, "random", draws)
    monkeypatch.setattr(reference, "_get_pixels", marked)
    image = torch.zeros(3, height, width)
    reference.RandomErasing(0.25, mode="pixel", max_count=1, device="cpu")(image)
    return image[0] > 0


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_rectangles_equal_timms_for_the_same_draws(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, erasing = 200 if height < 224 else 40, RandomErasing(0.25)
    keys = sample_keys(0, 0, torch.arange(batch))
    chosen, unit, place, key = erasing.draw(keys)
    got = erasing.apply(torch.full((3, batch, height, width), 7.0), chosen, unit, place, key)
    noise = keys.normal("noise", 3, height, width).transpose(0, 1)
    apply = keys.uniform("apply")
    for row in range(batch):
        draws = _Script(apply[row], unit[row], place[row])
        mask = timm_mask(monkeypatch, height, width, draws)
        assert bool(chosen[row]) == bool(apply[row] < 0.25)
        wanted = torch.where(mask, noise[:, row], 7.0)
        assert torch.equal(got[:, row], wanted)
    assert 0.15 < chosen.double().mean() < 0.375


def test_nothing_is_erased_where_no_attempt_fits() -> None:
    unit = torch.full((1, 10, 2), 0.999)
    box = rectangles(unit, torch.full((1, 2), 0.5), (0.02, 1 / 3), 0.3, 8, 8)
    assert box[0, 2:].tolist() == [0, 0], "1 / 3 of 64 pixels at 1 / 0.3 is 8 high"
    unit[0, 7] = torch.tensor([0.0, 0.5])  # 1.28 pixels of a square
    box = rectangles(unit, torch.full((1, 2), 0.5), (0.02, 1 / 3), 0.3, 8, 8)
    assert box[0].tolist() == [4, 4, 1, 1]


def test_noise_is_normal_for_each_pixel_channel_and_sample() -> None:
    erasing = RandomErasing(1.0, (0.5, 0.5), 1.0)
    keys = sample_keys(0, 0, torch.arange(64))
    planes = erasing.apply(torch.full((3, 64, 32, 32), -99.0), *erasing.draw(keys))
    noise = planes[planes > -99]
    assert noise.numel() == 3 * 64 * 23 * 23
    unit = (noise.double().sort().values / math.sqrt(2)).erf() / 2 + 0.5
    grid = (torch.arange(len(unit)) + 0.5) / len(unit)
    assert (unit - grid).abs().max() < 1.95 / math.sqrt(len(unit))
    assert noise.unique().numel() > 0.98 * noise.numel()  # 2**24 levels


def test_a_sample_does_not_depend_on_its_batch() -> None:
    erasing, keys = RandomErasing(0.5), sample_keys(1, 2, torch.arange(40))
    planes = torch.zeros(3, 40, 16, 16)
    whole = erasing.apply(planes.clone(), *erasing.draw(keys))
    for row in range(40):
        own = Keys(keys.key[row : row + 1])
        alone = erasing.apply(planes[:, :1].clone(), *erasing.draw(own))
        assert torch.equal(alone[:, 0], whole[:, row])


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
        RandomErasing(1.5)
    with pytest.raises(ValueError, match=r"aspect must be in \(0, 1\]"):
        RandomErasing(aspect=2.0)
