"""Gaussian blur: SimCLR's and BYOL's kernel with zero padding, and PIL's three box passes.

On accelerators, and for PIL's, both are products with banded matrices along the two axes, taken
in blocks so that little more than the band is multiplied.
Shapes: planes (C, B, H, W), changed in place; sigma (B,) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.random import Keys
from sslzoo.transforms.image.layout import on_rows

_BLOCK = 56  # rows of the result a product: at 224 pixels and radius 11, a quarter is multiplied
_NO_WEIGHT = 1e-10  # of a tap: below what a sum in float32 can show
_PIL_PASSES = 3  # box passes of ImageFilter.GaussianBlur

# Rows a to b and columns c to d of one square matrix a sample, (B, b - a, d - c).
Band = Callable[[int, int, int, int], Tensor]


def _block(length: int, device: torch.device) -> int:
    return _BLOCK if length > 2 * _BLOCK and device.type == "cpu" else length


def _multiply(planes: Tensor, band: Band, radius: int, rows: bool) -> Tensor:
    """Multiply each column (`rows`: each row) by a matrix whose band reaches `radius` pixels."""
    channels, batch, height, width = planes.shape
    length = width if rows else height
    block = _block(max(height, width), planes.device)
    source = planes.reshape(channels * batch, height, width)
    out = torch.empty_like(source)
    for start in range(0, length, block):
        stop = min(start + block, length)
        low, high = max(0, start - radius), min(length, stop + radius)
        matrix = band(start, stop, low, high).repeat(channels, 1, 1)
        if rows:
            torch.bmm(source[:, :, low:high], matrix.mT, out=out[:, :, start:stop])
        else:
            torch.bmm(matrix, source[:, low:high], out=out[:, start:stop])
    return out.view_as(planes)


def gaussian_blur_(planes: Tensor, sigma: Tensor, radius: int) -> None:
    """Blur with the normalized kernel exp(-x^2 / (2 sigma^2)), |x| <= radius, padded with zeros.

    Shapes: planes (C, B, H, W), changed in place; sigma (B,).
    """
    (_blur_by_samples if planes.device.type == "cpu" else _blur_by_bands)(planes, sigma, radius)


def _blur_by_samples(planes: Tensor, sigma: Tensor, radius: int) -> None:
    """Sample by sample, by few products with one block of a banded matrix, in the cache.

    A tap of no weight is 0: the smallest ones would be denormal numbers, which are slow.
    """
    height, width = planes.shape[2:]
    tap = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = (-0.5 * (tap / sigma.double()[:, None]).square()).exp()
    kernel /= kernel.sum(1, keepdim=True)
    kernel = torch.where(kernel < _NO_WEIGHT, 0, kernel).to(planes.dtype)
    # Row i of a block holds the kernel from column i on.
    padded = F.pad(kernel, (_BLOCK - 1, _BLOCK - 1))
    blocks = padded.unfold(1, _BLOCK + 2 * radius, 1).flip(1).contiguous()
    half = planes.new_empty(planes.shape[0], height, width)
    for sample, block in enumerate(blocks):
        image = planes[:, sample]
        for start, stop, low, high in _spans(width, radius):
            part = block[: stop - start, low - start + radius : high - start + radius]
            torch.matmul(image[:, :, low:high], part.mT, out=half[:, :, start:stop])
        for start, stop, low, high in _spans(height, radius):
            part = block[: stop - start, low - start + radius : high - start + radius]
            for channel, plane in zip(image, half, strict=True):
                torch.mm(part, plane[low:high], out=channel[start:stop])


def _spans(length: int, radius: int) -> list[tuple[int, int, int, int]]:
    """For each block of an axis its first and last place, and those that its band reaches."""
    starts = range(0, length, _BLOCK)
    ends = [min(start + _BLOCK, length) for start in starts]
    return [
        (start, stop, max(0, start - radius), min(length, stop + radius))
        for start, stop in zip(starts, ends, strict=True)
    ]


def _blur_by_bands(planes: Tensor, sigma: Tensor, radius: int) -> None:
    """The whole batch by products with banded matrices: no number leaves the device."""
    rate = (-0.5 / (sigma * sigma))[:, None, None]
    taps = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    total = (rate * taps * taps).exp().sum(2, keepdim=True)
    # The matrix is the same all along its diagonal: one block of it serves every other.
    block = _block(max(planes.shape[2:]), planes.device)
    tap = torch.arange(-radius, block + radius, device=sigma.device, dtype=sigma.dtype)
    distance = tap - tap[radius : radius + block, None]
    kept = (distance.abs() <= radius).to(sigma.dtype)
    matrix = (rate * (distance * distance)).exp().mul_(kept).div_(total)

    def band(a: int, b: int, c: int, d: int) -> Tensor:
        return matrix[:, : b - a, c - a + radius : d - a + radius]

    planes.copy_(_multiply(_multiply(planes, band, radius, rows=False), band, radius, rows=True))


def _box_matrix(sigma: Tensor, length: int, reach: int) -> Tensor:
    """One of PIL's three box passes along an axis, edges repeated, (B, length, length).

    The box of a fractional half-width l + a has the variance sigma^2 / 3 (Gwosdek et al.,
    Theoretical foundations of Gaussian convolution by extended box filtering, 2011).
    """
    variance = sigma * sigma / _PIL_PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part = part / (6 * (variance - (whole + 1) ** 2))
    pixel = torch.arange(length, device=sigma.device)[:, None]
    tap = torch.arange(-reach, length + reach, device=sigma.device)
    distance = (tap - pixel).abs().to(sigma.dtype)
    # 1 inside the box, its fraction on the rim, 0 outside.
    weights = (whole[:, None, None] + 1 - distance).clamp_(0, 1)
    rim = (1 - (whole[:, None, None] + 1 - distance).abs()).clamp_min_(0)
    weights += part[:, None, None] * rim
    weights /= (2 * (whole + part) + 1)[:, None, None]
    matrix = weights[:, :, reach : reach + length].clone()
    matrix[:, :, 0] += weights[:, :, :reach].sum(2)
    matrix[:, :, -1] += weights[:, :, reach + length :].sum(2)
    return matrix


def pil_blur_(planes: Tensor, sigma: Tensor, largest: float) -> None:
    """PIL's GaussianBlur(radius=sigma): three box passes along rows, three along columns.

    PIL rounds to bytes after each pass, so that a narrow blur leaves most pixels as they are;
    so does this, first of all for its input.

    Args:
        planes: (C, B, H, W) in [0, 1], changed in place.
        sigma: (B,).
        largest: a bound of sigma, which bounds the band.
    """
    variance = largest * largest / _PIL_PASSES
    reach = math.floor((math.sqrt(12 * variance + 1) - 1) / 2) + 1
    result = planes.mul_(255).round_()
    for rows in (True, False):
        box = _box_matrix(sigma, planes.shape[3 if rows else 2], reach)

        def band(a: int, b: int, c: int, d: int, box: Tensor = box) -> Tensor:
            return box[:, a:b, c:d]

        for _ in range(_PIL_PASSES):
            result = _multiply(result, band, reach, rows).round_()
    torch.mul(result, 1 / 255, out=planes)


@final
class GaussianBlur:
    """Blur with a kernel of about a tenth of the image's height, padded with zeros.

    SimCLR (height // 10, then // 2 on each side) and BYOL (int(height / 20)) share the radius.

    Args:
        p: probability per sample.
        sigma: range of the width in pixels, drawn for each sample.
    """

    def __init__(self, p: float, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        self.p = p
        self.sigma = sigma

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Which samples (B,) bool, and their sigma (B,)."""
        low, high = self.sigma
        return keys.bernoulli("apply", self.p), keys.uniform("sigma", 1, low=low, high=high)[:, 0]

    def apply(self, planes: Tensor, chosen: Tensor, sigma: Tensor) -> Tensor:
        """Shapes: planes (C, B, H, W), changed in place; chosen, sigma (B,)."""
        radius = planes.shape[2] // 20

        def blur(part: Tensor, width: Tensor) -> None:
            gaussian_blur_(part, width, radius)

        if radius:
            on_rows(planes, chosen, blur, sigma)
        return planes


@final
class PILBlur:
    """PIL's GaussianBlur with a random radius, as MoCo v2, SimSiam, SwAV and DINO use it.

    Args:
        p: probability per sample.
        sigma: range of the radius in pixels, drawn for each sample.
    """

    def __init__(self, p: float, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        self.p = p
        self.sigma = sigma

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """Which samples (B,) bool, and their sigma (B,)."""
        low, high = self.sigma
        return keys.bernoulli("apply", self.p), keys.uniform("sigma", 1, low=low, high=high)[:, 0]

    def apply(self, planes: Tensor, chosen: Tensor, sigma: Tensor) -> Tensor:
        """Shapes: planes (C, B, H, W), changed in place; chosen, sigma (B,)."""

        def blur(part: Tensor, width: Tensor) -> None:
            pil_blur_(part, width, self.sigma[1])

        on_rows(planes, chosen, blur, sigma)
        return planes
