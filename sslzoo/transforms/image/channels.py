"""Operations for images of any number of channels, such as bands, stains or detectors.

None of them mixes colors: brightness and contrast, noise, dropped and permuted channels, and
quarter turns. Every draw is keyed per sample and operation. Shapes: planes (C, B, H, W) as in
`layout.py`, changed in place, with values in [0, 1].
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sslzoo.checks import check_interval
from sslzoo.random import Keys
from sslzoo.transforms.image.layout import on_rows, per_sample

_ROWS = 32  # samples per chunk, since an accelerator makes noise for all of them


@final
class BrightnessContrast:
    """Multiply by a random factor, then stretch about each channel's mean; clip to [0, 1].

    With three channels and `per_channel=False`, these are torchvision's brightness and, but for the
    mean of each channel instead of that of the gray image, its contrast.

    Args:
        brightness: half-width of the factor's range about 1, at most 1.
        contrast: half-width of the stretch's range about 1, at most 1.
        p: probability per sample.
        per_channel: whether each channel of a sample has its own factors.
    """

    def __init__(
        self, brightness: float, contrast: float, p: float = 1.0, per_channel: bool = False
    ) -> None:
        for name, value in (("brightness", brightness), ("contrast", contrast), ("p", p)):
            check_interval(name, value, 0, 1)
        self.brightness, self.contrast, self.p = brightness, contrast, p
        self.per_channel = per_channel

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The chosen samples (B,) bool, and their keys (B,), as C is known with the planes."""
        return keys.bernoulli("apply", self.p), keys.key

    def apply(self, planes: Tensor, chosen: Tensor, key: Tensor) -> Tensor:
        """Change the chosen samples of planes in place."""
        count = len(planes) if self.per_channel else 1
        unit = Keys(key).uniform("factor", 2, count, low=-1.0)  # (B, 2, C or 1)
        on_rows(planes, chosen, self._change, unit)
        return planes

    def _change(self, planes: Tensor, unit: Tensor) -> None:
        factor, stretch = (1 + unit[:, i].T * w for i, w in enumerate(self._widths()))
        planes.mul_(per_sample(factor)).clamp_(0, 1)
        means = planes.mean((2, 3), keepdim=True)
        planes.sub_(means).mul_(per_sample(stretch)).add_(means).clamp_(0, 1)

    def _widths(self) -> tuple[float, float]:
        return self.brightness, self.contrast


@final
class GaussianNoise:
    """Add normal noise, independent per pixel and channel; clip to [0, 1].

    Args:
        std: the largest standard deviation; each sample's is uniform in [0, std].
        p: probability per sample.
    """

    def __init__(self, std: float, p: float = 1.0) -> None:
        check_interval("std", std, 0, 1)
        check_interval("p", p, 0, 1)
        self.std, self.p = std, p

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The chosen samples (B,) bool, their deviation (B,), and the noise's keys (B,)."""
        return keys.bernoulli("apply", self.p), keys.uniform("std", 1)[:, 0] * self.std, keys.key

    def apply(self, planes: Tensor, chosen: Tensor, std: Tensor, key: Tensor) -> Tensor:
        """Add noise to the chosen samples of planes in place."""
        for start in range(0, planes.shape[1], _ROWS):
            rows = slice(start, start + _ROWS)
            on_rows(planes[:, rows], chosen[rows], _add_noise, std[rows], key[rows])
        return planes


def _add_noise(planes: Tensor, std: Tensor, key: Tensor) -> None:
    channels, _, height, width = planes.shape
    noise = Keys(key).normal("noise", channels, height, width).transpose(0, 1)
    planes.addcmul_(noise, per_sample(std)).clamp_(0, 1)


@final
class ChannelDropout:
    """Set random channels to 0; one channel of each sample is always kept.

    Args:
        p: probability per sample and channel.
    """

    def __init__(self, p: float) -> None:
        check_interval("p", p, 0, 1)
        self.p = p

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The samples' keys (B,), as C is known with the planes."""
        return (keys.key,)

    def apply(self, planes: Tensor, key: Tensor) -> Tensor:
        """Drop channels of planes in place."""
        unit = Keys(key).uniform("drop", len(planes))  # (B, C)
        kept = (unit >= self.p) | (unit == unit.amax(1, keepdim=True))
        return planes.mul_(per_sample(kept.T.to(planes.dtype)))


@final
class ChannelShuffle:
    """Permute the channels of samples.

    Args:
        p: probability per sample.
    """

    def __init__(self, p: float) -> None:
        check_interval("p", p, 0, 1)
        self.p = p

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The chosen samples (B,) bool, and their keys (B,), as C is known with the planes."""
        return keys.bernoulli("apply", self.p), keys.key

    def apply(self, planes: Tensor, chosen: Tensor, key: Tensor) -> Tensor:
        """Permute the channels of the chosen samples of planes in place."""
        order = Keys(key).permutation("order", len(planes))  # (B, C)
        on_rows(planes, chosen, _permute, order)
        return planes


def _permute(planes: Tensor, order: Tensor) -> None:
    planes.copy_(planes.gather(0, per_sample(order.T).expand_as(planes)))


@final
class QuarterTurns:
    """Rotate samples by 0, 90, 180 or 270 degrees, for images without an up and a down."""

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The number of quarter turns, (B,) int64."""
        return (keys.integers("turns", 4),)

    def apply(self, planes: Tensor, turns: Tensor) -> Tensor:
        """Rotate planes (C, B, S, S) in place."""
        for count in (1, 2, 3):
            on_rows(planes, turns == count, lambda part, n=count: _turn(part, n))
        return planes


def _turn(planes: Tensor, count: int) -> None:
    planes.copy_(torch.rot90(planes, count, (2, 3)).clone())
