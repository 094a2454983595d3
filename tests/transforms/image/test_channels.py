"""Operations and views for any number of channels, keyed per sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.random import sample_keys
from sslzoo.transforms import channel_views
from sslzoo.transforms.image.channels import (
    BrightnessContrast,
    ChannelDropout,
    ChannelShuffle,
    GaussianNoise,
    QuarterTurns,
)
from sslzoo.transforms.image.layout import Op

COUNTS = (1, 2, 3, 4, 13)
OPS: dict[str, Op] = {
    "brightness and contrast": BrightnessContrast(0.4, 0.4, 0.8),
    "per channel": BrightnessContrast(0.4, 0.4, 0.8, per_channel=True),
    "noise": GaussianNoise(0.1, 0.8),
    "dropout": ChannelDropout(0.5),
    "shuffle": ChannelShuffle(0.8),
    "turns": QuarterTurns(),
}


def planes(channels: int, batch: int = 40, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.rand(channels, batch, side, side, generator=generator)


def applied(op: Op, images: Tensor, index: Tensor) -> Tensor:
    return op.apply(images.clone(), *op.draw(sample_keys(3, 0, index)))


@pytest.mark.parametrize("channels", COUNTS)
@pytest.mark.parametrize("name", list(OPS))
def test_a_sample_does_not_depend_on_its_batch(name: str, channels: int) -> None:
    images, index = planes(channels), torch.arange(40)
    whole = applied(OPS[name], images, index)
    parts = [applied(OPS[name], images[:, rows], index[rows]) for rows in index.split(7)]
    assert torch.equal(whole, torch.cat(parts, 1))
    assert whole.min() >= 0
    assert whole.max() <= 1
    if channels > 1 or name not in ("dropout", "shuffle"):
        assert 10 < int((whole != images).flatten(2).any(2).any(0).sum()) <= 40


def test_brightness_and_contrast_are_torchvisions() -> None:
    from torchvision.transforms.v2 import functional

    op, images = BrightnessContrast(0.5, 0.5), planes(1, side=6) * 0.5 + 0.2
    got = applied(op, images, torch.arange(40))
    unit = 1 + 0.5 * sample_keys(3, 0, torch.arange(40)).uniform("factor", 2, 1, low=-1.0)[..., 0]
    for sample in range(40):
        bright, stretch = unit[sample].tolist()
        wanted = functional.adjust_brightness(images[:, sample], bright)
        wanted = functional.adjust_contrast(wanted, stretch)
        torch.testing.assert_close(got[:, sample], wanted)


def test_factors_are_shared_or_of_each_channel() -> None:
    images = planes(1, side=4).expand(5, -1, -1, -1).contiguous() * 0.4
    shared, own = (
        applied(BrightnessContrast(0.4, 0.0, 1.0, p), images, torch.arange(40)) / images
        for p in (False, True)
    )
    assert shared.std(0).max() < 1e-5
    assert own.std(0).min() > 1e-3
    assert shared.flatten(1).std(1).min() > 0.1


def test_dropout_keeps_one_channel_and_the_others_as_often_as_asked() -> None:
    images = torch.ones(6, 400, 2, 2)
    for p in (0.0, 0.3, 1.0):
        kept = applied(ChannelDropout(p), images, torch.arange(400))[:, :, 0, 0].bool()
        assert kept.sum(0).min() >= 1
        assert abs(kept.float().mean().item() - max(1 - p, 1 / 6)) < 0.04


def test_shuffle_permutes_and_turns_rotate() -> None:
    images = planes(5)
    shuffled = applied(ChannelShuffle(1.0), images, torch.arange(40))
    assert torch.equal(shuffled.sort(0).values, images.sort(0).values)
    turned = applied(QuarterTurns(), images, torch.arange(40))
    counts = sample_keys(3, 0, torch.arange(40)).integers("turns", 4).tolist()
    assert set(counts) == {0, 1, 2, 3}
    for row, count in enumerate(counts):
        assert torch.equal(turned[:, row], torch.rot90(images[:, row], count, (1, 2)))


def test_noise_has_the_drawn_deviation() -> None:
    images = torch.full((3, 20, 64, 64), 0.5)
    op = GaussianNoise(0.1)
    keys = sample_keys(3, 0, torch.arange(20))
    noise = applied(op, images, torch.arange(20)) - 0.5
    torch.testing.assert_close(
        noise.transpose(0, 1).flatten(1).std(1), op.draw(keys)[1], rtol=0.03, atol=1e-4
    )


@pytest.mark.parametrize("channels", COUNTS)
def test_views_have_all_channels_and_do_not_depend_on_the_batch(channels: int) -> None:
    transform = channel_views(
        *([16, 8], [2, 3], [(0.3, 1.0), (0.1, 0.3)]),
        dropout=0.2,
        shuffle=0.5,
        solarize=0.3,
        turn=True,
        mean=[0.4] * channels,
        std=[0.2] * channels,
    )
    images = (planes(channels, 6, 20) * 65535).int().to(torch.uint16).transpose(0, 1).contiguous()
    views = transform(images, sample_keys(0, 1, torch.arange(6)))
    assert [view.shape for view in views] == [(6, channels, s, s) for s in (16, 16, 8, 8, 8)]
    alone = transform(images[2:3], sample_keys(0, 1, torch.tensor([2])))
    for view, one in zip(views, alone, strict=True):
        torch.testing.assert_close(view[2:3], one, atol=1e-5, rtol=1e-5)
    assert not torch.equal(views[0], views[1])
    assert transform.trained_view().mean == (0.4,) * channels


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sizes": [8, 4]}, r"one entry per kind of view, got \[8, 4\], \(2,\) and"),
        ({"sizes": 24}, "must be lists with one entry per kind of view, got 24, "),
        ({"brightness": 1.5}, "brightness"),
        ({"noise": -1}, "std"),
        ({"dropout": 2}, "p must"),
        ({"blur": 1.2}, "blur"),
        ({"mean": [0.5]}, "mean and std must be given together"),
    ],
)
def test_other_arguments_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        channel_views(**wrong)
