"""RandAugment: random operations per sample, with a magnitude and noise.

Cubuk, Zoph, Shlens and Le, RandAugment: Practical Automated Data Augmentation with a Reduced
Search Space, NeurIPS 2020, https://arxiv.org/abs/1909.13719. This is timm's variant; its string for
the defaults is rand-m9-mstd0.5-inc1 with bicubic interpolation, as in DeiT, BEiT and MAE.
timm draws from the process's generators, image by image; here every draw is keyed, so that views do
not depend on ranks, workers or a resume, and a batch is one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sslzoo.checks import check_at_least, check_interval
from sslzoo.random import Keys
from sslzoo.transforms.image.layout import require_rgb
from sslzoo.transforms.image.pil_operations import Operation, operate_

HIGHEST = 10.0  # timm's largest magnitude
_COUNT = len(Operation) - 1


def arguments(operation: Tensor, magnitude: Tensor, negative: Tensor) -> Tensor:
    """The arguments of timm's "increasing" operations at a magnitude.

    Args:
        operation: members of `Operation` except NONE, any shape.
        magnitude: float64 from 0 to 10, of that shape.
        negative: bool of that shape, whether a signed argument is negative.

    Returns:
        float64 of that shape; 0 for operations without an argument.
    """
    level = magnitude / torch.full_like(magnitude, HIGHEST)  # exact, since some are truncated below
    sign = 1 - 2 * negative.double()
    nothing = torch.zeros_like(level)
    factor = (1 + sign * (level * 0.9)).clamp_min(0.1)
    made = {
        Operation.ROTATE: sign * (level * 30),
        Operation.POSTERIZE: 4 - (level * 4).floor(),
        Operation.SOLARIZE: 256 - (level * 256).floor(),
        Operation.SOLARIZE_ADD: (level * 110).floor(),
        Operation.COLOR: factor,
        Operation.CONTRAST: factor,
        Operation.BRIGHTNESS: factor,
        Operation.SHARPNESS: factor,
        Operation.SHEAR_X: sign * (level * 0.3),
        Operation.SHEAR_Y: sign * (level * 0.3),
        Operation.TRANSLATE_X: sign * (level * 0.45),
        Operation.TRANSLATE_Y: sign * (level * 0.45),
    }
    each = [made.get(Operation(number), nothing) for number in range(_COUNT)]
    return torch.stack(each, dim=-1).gather(-1, operation[..., None])[..., 0]


@final
class RandAugment:
    """Apply random operations of fifteen, each with probability `p`.

    Values are rounded to bytes first, and the operations equal PIL's. An image posterized to 0 bits
    (magnitude 10, one image in 660) is black, as in older versions of Pillow; Pillow 13 refuses it.

    Args:
        magnitude: mean magnitude per operation, 0 to 10.
        magnitude_std: standard deviation of the magnitude, which is then clipped to 0..10.
        num_ops: number of consecutive operations, drawn with replacement.
        p: probability per operation.
        fill: red, green and blue bytes outside a moved image; in timm the mean of the
            normalization.
    """

    def __init__(
        self,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        num_ops: int = 2,
        p: float = 0.5,
        fill: Sequence[int] = (128, 128, 128),
    ) -> None:
        check_interval("magnitude", magnitude, 0, HIGHEST)
        check_at_least("magnitude_std", magnitude_std, 0)
        check_at_least("num_ops", num_ops, 1)
        check_interval("p", p, 0, 1)
        if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
            raise ValueError(f"fill must be three bytes, got {tuple(fill)}")
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_ops = num_ops
        self.p = p
        self.fill = tuple(fill)

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Operations (B, n) int64, NONE if not applied, and arguments (B, n) float64."""
        operation = keys.integers("operation", _COUNT, self.num_ops)
        noise = keys.normal("magnitude", self.num_ops).double()
        magnitude = (self.magnitude + self.magnitude_std * noise).clamp(0, HIGHEST)
        negative = keys.bernoulli("negative", 0.5, self.num_ops)
        argument = arguments(operation, magnitude, negative)
        applied = keys.bernoulli("apply", self.p, self.num_ops)
        return torch.where(applied, operation, int(Operation.NONE)), argument

    def apply(self, planes: Tensor, operation: Tensor, argument: Tensor) -> Tensor:
        """Augment planes (3, B, S, S) in [0, 1] in place; draws (B, n)."""
        require_rgb(planes, "RandAugment")
        pixels = (planes * 255).round_().to(torch.uint8)
        for step in range(self.num_ops):
            operate_(pixels, operation[:, step], argument[:, step], self.fill)
        return planes.copy_(pixels).mul_(1 / 255)
