"""Gaussian blur: SimCLR's and BYOL's kernel with zero padding, and PIL's three box passes.

The Gaussian kernel is applied as products with banded matrices along the two axes, in blocks that
cover little more than the band; PIL's boxes as sums of a few shifted images.
Shapes: planes (C, B, H, W), changed in place; sigma (B,) in pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.checks import check_at_least, check_choice
from sslzoo.random import Keys
from sslzoo.transforms.image.layout import on_rows

_BLOCK = 56  # rows of the result per product of a batch; at 224 pixels, a third is multiplied
_OWN_BLOCK = 32  # likewise, for a single sample
_NO_WEIGHT = 1e-10  # weight of a tap that is lost in a float32 sum
_PIL_PASSES = 3  # box passes of ImageFilter.GaussianBlur
_PIL_ONE = 2.0**24  # the weights of a box sum to it
_PIL_PIXELS = 1 << 15  # pixels of a channel that are blurred at a time on a CPU

# Rows a to b and columns c to d of one square matrix per sample, (B, b - a, d - c).
Band = Callable[[int, int, int, int], Tensor]


def _block(length: int, device: torch.device) -> int:
    return _BLOCK if length > 2 * _BLOCK and device.type == "cpu" else length


def _multiply(planes: Tensor, band: Band, radius: int, rows: bool) -> Tensor:
    """Multiply each column (or row) by a matrix whose band has half-width `radius`."""
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
    """Blur sample by sample, in the cache, by products with a block of a banded matrix.

    Taps of negligible weight are left out, or 0, since denormal numbers are slow.
    """
    channels, _, height, width = planes.shape
    tap = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = (-0.5 * (tap / sigma.double()[:, None]).square()).exp()
    kernel /= kernel.sum(1, keepdim=True)
    kernel = torch.where(kernel < _NO_WEIGHT, 0, kernel).to(planes.dtype)
    half = planes.new_empty(channels, height, width)
    reaches = kernel.count_nonzero(1).div(2, rounding_mode="floor").tolist()
    for sample, reach in enumerate(reaches):
        image, taps = planes[:, sample], kernel[sample, radius - reach : radius + reach + 1]
        # Row i of a block holds the kernel from column i.
        padded = F.pad(taps, (_OWN_BLOCK - 1, _OWN_BLOCK - 1))
        block = padded.unfold(0, _OWN_BLOCK + 2 * reach, 1).flip(0).contiguous()
        lines, halves = image.flatten(0, 1), half.flatten(0, 1)
        for start, stop, low, high in _spans(width, reach):
            part = block[: stop - start, low - start + reach : high - start + reach]
            torch.mm(lines[:, low:high], part.mT, out=halves[:, start:stop])
        for start, stop, low, high in _spans(height, reach):
            part = block[: stop - start, low - start + reach : high - start + reach]
            torch.bmm(part.expand(channels, -1, -1), half[:, low:high], out=image[:, start:stop])


def _spans(length: int, radius: int) -> list[tuple[int, int, int, int]]:
    """Per block of an axis: start and stop, and the start and stop of its band."""
    starts = range(0, length, _OWN_BLOCK)
    ends = [min(start + _OWN_BLOCK, length) for start in starts]
    return [
        (start, stop, max(0, start - radius), min(length, stop + radius))
        for start, stop in zip(starts, ends, strict=True)
    ]


def _blur_by_bands(planes: Tensor, sigma: Tensor, radius: int) -> None:
    """Blur the whole batch by products with banded matrices, without a host sync."""
    rate = (-0.5 / (sigma * sigma))[:, None, None]
    taps = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    total = (rate * taps * taps).exp().sum(2, keepdim=True)
    # The matrix is constant along its diagonals, so that all blocks are equal.
    block = _block(max(planes.shape[2:]), planes.device)
    tap = torch.arange(-radius, block + radius, device=sigma.device, dtype=sigma.dtype)
    distance = tap - tap[radius : radius + block, None]
    kept = (distance.abs() <= radius).to(sigma.dtype)
    matrix = (rate * (distance * distance)).exp().mul_(kept).div_(total)

    def band(a: int, b: int, c: int, d: int) -> Tensor:
        return matrix[:, : b - a, c - a + radius : d - a + radius]

    planes.copy_(_multiply(_multiply(planes, band, radius, rows=False), band, radius, rows=True))


def _box_weights(sigma: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Integer weights of one of PIL's box passes, and what is added before the shift by 24 bits.

    The box of a fractional half-width l + a has the variance sigma^2 / 3 (Gwosdek et al.,
    Theoretical foundations of Gaussian convolution by extended box filtering, 2011). The rounding
    is that of Pillow's BoxBlur.c, which computes in float32.

    Returns:
        The weight at distance 0, ..., `reach`, (reach + 1, B, 1, 1), and the summand (B, 1, 1),
        int32, for pixels of -128..127.
    """
    variance = sigma.float().square() / _PIL_PASSES
    whole = (((12 * variance.double() + 1).sqrt().float().double() - 1) / 2).floor().float()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part = part / (6 * (variance - (whole + 1) * (whole + 1)))
    inside = (_PIL_ONE / ((whole + part) * 2 + 1)).floor().double()
    rest = _PIL_ONE - (2 * whole + 1).double() * inside
    rim = (rest / 2).floor()
    distance = torch.arange(reach + 1, device=sigma.device)[:, None]
    weights = inside * (distance <= whole) + rim * (distance == whole + 1)
    # The weights of 128, which each pixel lacks, sum to 2^24 or, if the rest is odd, to 2^24 - 1.
    summand = _PIL_ONE / 2 - 128 * (rest - 2 * rim)
    return weights.int()[:, :, None, None], summand.int()[:, None, None]


def _box_passes(pixels: Tensor, weights: Tensor, summand: Tensor, dim: int) -> Tensor:
    """PIL's three box passes along an axis, edges repeated, as exact sums of int32.

    Shapes: pixels (C, B, H, W) int32 in -128..127.
    """
    reach, length, shape = len(weights) - 1, pixels.shape[dim], list(pixels.shape)
    shape[dim] += 2 * reach
    padded = pixels.new_empty(shape)
    left, inner, right = padded.split([reach, length, reach], dim)
    inner.copy_(pixels)
    first, last = inner.narrow(dim, 0, 1), inner.narrow(dim, length - 1, 1)
    total, pair = torch.empty_like(pixels), torch.empty_like(pixels)
    for _ in range(_PIL_PASSES):
        left.copy_(first.expand_as(left))
        right.copy_(last.expand_as(right))
        torch.addcmul(summand, inner, weights[0], out=total)
        for distance in range(1, reach + 1):
            before = padded.narrow(dim, reach - distance, length)
            torch.add(before, padded.narrow(dim, reach + distance, length), out=pair)
            total.addcmul_(pair, weights[distance])
        torch.bitwise_right_shift(total, 24, out=inner)
    return inner


def pil_blur_(planes: Tensor, sigma: Tensor, largest: float) -> None:
    """PIL's GaussianBlur(radius=sigma): three box passes along rows and three along columns.

    It equals PIL to the byte: the input and the result of each pass are bytes, and the weights
    Pillow's integers. On a CPU, a few samples at a time stay in the cache.

    Args:
        planes: (C, B, H, W) in [0, 1], changed in place.
        sigma: (B,).
        largest: upper bound of sigma, which bounds the width of the box.
    """
    reach = math.floor((math.sqrt(12 * largest * largest / _PIL_PASSES + 1) - 1) / 2) + 1
    weights, summand = _box_weights(sigma, reach)
    batch, height, width = planes.shape[1:]
    on_cpu = planes.device.type == "cpu"
    step = max(1, _PIL_PIXELS // (height * width)) if on_cpu else max(1, batch)
    for start in range(0, batch, step):
        part = planes[:, start : start + step]
        own, added = weights[:, start : start + step], summand[start : start + step]
        if on_cpu:
            own = own[: 1 + int(own.flatten(1).any(1).nonzero().max())]
        pixels = part.mul(255).round_().sub_(128).int()
        for dim in (3, 2):
            pixels = _box_passes(pixels, own, added, dim)
        part.copy_(pixels.to(planes.dtype).add_(128).mul_(1 / 255))


class _RandomBlur(ABC):
    """Blur samples with a random width.

    Args:
        p: probability per sample.
        sigma: range of the width in pixels, drawn per sample.
    """

    def __init__(self, p: float, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        self.p = p
        self.sigma = sigma

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The chosen samples (B,) bool, and their sigma (B,)."""
        low, high = self.sigma
        return keys.bernoulli("apply", self.p), keys.uniform("sigma", 1, low=low, high=high)[:, 0]

    def apply(self, planes: Tensor, chosen: Tensor, sigma: Tensor) -> Tensor:
        """Blur the chosen samples of planes (C, B, H, W) in place."""
        on_rows(planes, chosen, self.blur_, sigma)
        return planes

    @abstractmethod
    def blur_(self, planes: Tensor, sigma: Tensor) -> None:
        """Blur planes (C, B, H, W) in place with widths sigma (B,)."""


@final
class GaussianBlur(_RandomBlur):
    """Blur with a Gaussian kernel, by default of a tenth of the height (SimCLR, BYOL).

    The radius is SimCLR's (height // 10) // 2, which equals BYOL's int(height / 20).

    Args:
        p: probability per sample.
        sigma: range of the width in pixels, drawn per sample.
        kernel_size: width of the kernel in pixels; an even one is enlarged by 1, as in SimCLR.
            None: a tenth of the height.
        padding: "zeros" as in SimCLR and BYOL, or "reflect" as in torchvision (DINOv2).

    Raises:
        ValueError: for a kernel_size below 1, or an unknown padding.
    """

    def __init__(
        self,
        p: float,
        sigma: tuple[float, float] = (0.1, 2.0),
        kernel_size: int | None = None,
        padding: Literal["zeros", "reflect"] = "zeros",
    ) -> None:
        super().__init__(p, sigma)
        check_choice("padding", padding, ("zeros", "reflect"))
        self.padding = padding
        if kernel_size is not None:
            check_at_least("kernel_size", kernel_size, 1)
        self.kernel_size = kernel_size

    def blur_(self, planes: Tensor, sigma: Tensor) -> None:
        size = planes.shape[2] // 10 if self.kernel_size is None else self.kernel_size
        radius = size // 2
        if radius and self.padding == "reflect":
            wide = F.pad(planes, (radius,) * 4, mode="reflect")
            gaussian_blur_(wide, sigma, radius)
            planes.copy_(wide[:, :, radius:-radius, radius:-radius])
        elif radius:
            gaussian_blur_(planes, sigma, radius)


@final
class PILBlur(_RandomBlur):
    """Blur as PIL's GaussianBlur with a random radius (MoCo v2, SimSiam, SwAV, DINO)."""

    def blur_(self, planes: Tensor, sigma: Tensor) -> None:
        pil_blur_(planes, sigma, self.sigma[1])
