"""RandAugment: a few operations of fifteen, drawn for each sample, at one magnitude with noise.

Cubuk, Zoph, Shlens and Le, RandAugment: Practical Automated Data Augmentation with a Reduced
Search Space, NeurIPS 2020, https://arxiv.org/abs/1909.13719; as timm has it, whose string for the
defaults here is rand-m9-mstd0.5-inc1 with bicubic interpolation: DeiT's, BEiT's and MAE's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sslzoo.random import Keys
from sslzoo.transforms.image.layout import require_rgb
from sslzoo.transforms.image.pil_operations import Operation, operate_

HIGHEST = 10.0  # of timm's magnitudes
_COUNT = len(Operation) - 1


def arguments(operation: Tensor, magnitude: Tensor, negative: Tensor) -> Tensor:
    """What timm's "increasing" set makes of a magnitude, for each operation.

    Args:
        operation: members of `Operation`, but NONE, any shape.
        magnitude: float64 from 0 to 10, of that shape.
        negative: bool of that shape, whether to go the other way where there are two.

    Returns:
        float64 of that shape; 0 for operations without an argument.
    """
    share = magnitude / torch.full_like(magnitude, HIGHEST)  # exactly: some are cut off below
    sign = 1 - 2 * negative.double()
    nothing = torch.zeros_like(share)
    factor = (1 + sign * (share * 0.9)).clamp_min(0.1)
    made = {
        Operation.ROTATE: sign * (share * 30),
        Operation.POSTERIZE: 4 - (share * 4).floor(),
        Operation.SOLARIZE: 256 - (share * 256).floor(),
        Operation.SOLARIZE_ADD: (share * 110).floor(),
        Operation.COLOR: factor,
        Operation.CONTRAST: factor,
        Operation.BRIGHTNESS: factor,
        Operation.SHARPNESS: factor,
        Operation.SHEAR_X: sign * (share * 0.3),
        Operation.SHEAR_Y: sign * (share * 0.3),
        Operation.TRANSLATE_X: sign * (share * 0.45),
        Operation.TRANSLATE_Y: sign * (share * 0.45),
    }
    each = [made.get(Operation(number), nothing) for number in range(_COUNT)]
    return torch.stack(each, dim=-1).gather(-1, operation[..., None])[..., 0]


@final
class RandAugment:
    """Operations on bytes, each drawn anew and applied with probability `p`.

    Values are rounded to bytes first, as an image of PIL's is; the operations equal PIL's. Where
    posterizing leaves no bit (magnitude 10: one image in 660) it is black, as Pillow made it once;
    Pillow 13 refuses to.

    Args:
        magnitude: the mean of what each operation draws, 0 to 10.
        magnitude_std: its normal deviation; what lies outside 0 to 10 becomes the end.
        num_ops: operations one after another, with replacement.
        p: probability of applying each.
        fill: bytes of red, green and blue where a moved image leaves nothing; timm's is the mean
            of the normalization.
    """

    def __init__(
        self,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        num_ops: int = 2,
        p: float = 0.5,
        fill: Sequence[int] = (128, 128, 128),
    ) -> None:
        if not 0 <= magnitude <= HIGHEST or magnitude_std < 0:
            raise ValueError(
                f"magnitude wants 0 to {HIGHEST:g} and magnitude_std 0 or more, got {magnitude} "
                f"and {magnitude_std}"
            )
        if num_ops < 1 or not 0 <= p <= 1:
            raise ValueError(f"num_ops wants 1 or more and p 0 to 1, got {num_ops} and {p}")
        if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
            raise ValueError(f"fill wants three bytes, got {tuple(fill)}")
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_ops = num_ops
        self.p = p
        self.fill = tuple(fill)

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Operations (B, n) int64, NONE where none is applied, and arguments (B, n) float64."""
        operation = keys.integers("operation", _COUNT, self.num_ops)
        noise = keys.normal("magnitude", self.num_ops).double()
        magnitude = (self.magnitude + self.magnitude_std * noise).clamp(0, HIGHEST)
        negative = keys.bernoulli("negative", 0.5, self.num_ops)
        argument = arguments(operation, magnitude, negative)
        applied = keys.bernoulli("apply", self.p, self.num_ops)
        return torch.where(applied, operation, int(Operation.NONE)), argument

    def apply(self, planes: Tensor, operation: Tensor, argument: Tensor) -> Tensor:
        """Shapes: planes (3, B, S, S) in [0, 1], changed in place; draws (B, n)."""
        require_rgb(planes, "RandAugment")
        pixels = (planes * 255).round_().to(torch.uint8)
        for step in range(self.num_ops):
            operate_(pixels, operation[:, step], argument[:, step], self.fill)
        return planes.copy_(pixels).mul_(1 / 255)
