"""Color spaces: RGB to CIE Lab, YCbCr and gray, as scikit-image defines them.

Lab: sRGB to XYZ (IEC 61966-2-1) with the white point D65 of the 2 degree observer, then CIE 1976.
YCbCr: ITU-R BT.601 with foot-room, Y in 16..235 and Cb, Cr in 16..240.

Shapes: planes (C, B, H, W) as in `layout.py`, changed in place.
"""

from __future__ import annotations

from typing import Literal, final, get_args

import torch
from torch import Tensor

from sslzoo.checks import check_choice
from sslzoo.random import Keys
from sslzoo.transforms.image.color import grayscale_
from sslzoo.transforms.image.layout import require_rgb

Space = Literal["rgb", "lab", "ycbcr", "gray"]

_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degrees
_YCBCR = (
    (65.481, 128.553, 24.966),
    (-37.797, -74.203, 112.0),
    (112.0, -93.786, -18.214),
)
_YCBCR_OFFSET = (16.0, 128.0, 128.0)

# CMC's constants: center and half-width of each channel's range over all RGB colors.
LAB_MEAN = (50.0, 6.025, -6.6895)
LAB_STD = (50.0, 92.208, 101.1675)
YCBCR_MEAN = (116.151, 121.080, 132.342)
YCBCR_STD = (109.5, 111.855, 111.964)


def _weighted(source: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """The weighted sum of three planes. Shapes: (3, B, H, W) -> (B, H, W)."""
    first, second, third = weights
    return (source[0] * first).add_(source[1], alpha=second).add_(source[2], alpha=third)


def rgb_to_lab_(planes: Tensor) -> None:
    """Convert RGB to Lab in place: L in 0..100, a and b within about -108..99.

    Shapes: planes (3, B, H, W) in [0, 1].
    """
    curve = ((planes + 0.055) / 1.055).pow_(2.4)
    linear = torch.where(planes > 0.04045, curve, planes / 12.92)
    for channel, (weights, white) in enumerate(zip(_XYZ, _WHITE, strict=True)):
        planes[channel] = _weighted(linear, weights).div_(white)
    root = torch.where(planes > 0.008856, planes.pow(1 / 3), planes * 7.787 + 16 / 116)
    x, y, z = root
    torch.sub(y * 116, 16, out=planes[0])
    torch.mul(x - y, 500, out=planes[1])
    torch.mul(y - z, 200, out=planes[2])


def rgb_to_ycbcr_(planes: Tensor) -> None:
    """Convert RGB to YCbCr in place: Y in 16..235, Cb and Cr in 16..240.

    Shapes: planes (3, B, H, W) in [0, 1].
    """
    source = planes.clone()
    for channel, (weights, offset) in enumerate(zip(_YCBCR, _YCBCR_OFFSET, strict=True)):
        planes[channel] = _weighted(source, weights).add_(offset)


def to_space_(planes: Tensor, space: Space) -> None:
    """Convert the first three planes, RGB in [0, 1], to `space` in place.

    "gray" gives three equal channels.
    """
    if space == "rgb":
        return
    require_rgb(planes[:3], space)
    change = {"lab": rgb_to_lab_, "ycbcr": rgb_to_ycbcr_, "gray": grayscale_}[space]
    change(planes[:3])


@final
class ColorSpace:
    """Convert every sample to another color space.

    Args:
        space: "lab", "ycbcr", "gray" (three equal channels), or "rgb" for no conversion.
    """

    def __init__(self, space: Space) -> None:
        check_choice("space", space, get_args(Space))
        self.space: Space = space

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """No random parameters."""
        return ()

    def apply(self, planes: Tensor) -> Tensor:
        """Convert planes (C, B, H, W) in place; the first three are RGB."""
        to_space_(planes, self.space)
        return planes
