"""The evaluation view: the deterministic resize, center crop and normalization of an image.

Shapes: B images, C channels, sources (H, W), results (S, S).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslzoo.checks import check_at_least, check_choice
from sslzoo.eval.fingerprint import described
from sslzoo.transforms.image.color_space import Space, to_space_
from sslzoo.transforms.image.layout import to_planes
from sslzoo.transforms.image.normalize import check_mean_std, normalize_
from sslzoo.transforms.image.pixels import Raster, describe, pixels_of, stack_pixels
from sslzoo.transforms.image.resample import Interpolation, center_crop, crop_planes
from sslzoo.value_range import ValueRange, as_pixels, from_array


@final
class EvalView:
    """Resize the shorter side, crop the center, normalize.

    Args:
        size: S, side of the result in pixels.
        resize: shorter side before the crop, such as 256 for 224; None: no resize.
        mean: mean per channel; None: no normalization (SimCLR).
        std: standard deviation per channel.
        interpolation: "bilinear" or "bicubic", antialiased.
        fraction: instead of `resize`: crop the central square of this fraction of the shorter side
            and resize it without antialiasing, as TensorFlow does; 0.875 and bicubic in SimCLR.
        space: color space before the normalization: "rgb", "lab" or "ycbcr" (CMC), or "gray".
        squash: instead of `resize` and the crop: resize the whole image to a square, as SigLIP's.
    """

    def __init__(
        self,
        size: int,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: Interpolation = "bilinear",
        fraction: float | None = None,
        space: Space = "rgb",
        squash: bool = False,
    ) -> None:
        check_choice("space", space, get_args(Space))
        check_choice("interpolation", interpolation, get_args(Interpolation))
        check_mean_std(mean, std)
        if resize is not None:
            check_at_least("resize", resize, size)
            if fraction is not None:
                raise ValueError(f"fraction must be None with resize, got {fraction}")
        if squash and (resize, fraction) != (None, None):
            raise ValueError(
                f"resize and fraction must be None with squash, got {resize} and {fraction}"
            )
        self.size = size
        self.resize = resize
        self.mean = mean
        self.std = std
        self.interpolation: Interpolation = interpolation
        self.fraction = fraction
        self.space: Space = space
        self.squash = squash
        self.channels: int | None = None if mean is None else len(mean)  # that images must have
        self.value_range: ValueRange | None = None  # of raw images, from a card
        self.clip = False  # whether values outside it are clipped

    @torch.no_grad()
    def __call__(self, images: Any, value_range: Sequence[float] | None = None) -> Tensor:
        """The view of images: (B, C, S, S) float32; one image is a batch of one.

        Args:
            images: a tensor (B, C, H, W) or (C, H, W), an array (B, H, W, C), (H, W, C) or (H, W),
                a PIL image, the path of a file, or a list of these, of any sizes. Pixels are uint8,
                uint16, bool, or float in [0, 1].
            value_range: the values of black and white; None: those that training declared, or
                those of the type.

        Raises:
            ValueError: the images have another type, shape or range.
        """
        parts = self._pixels(images, self.value_range if value_range is None else value_range)
        with torch.autocast(parts[0].device.type, enabled=False):
            return torch.cat([self.finish(self._center(part)) for part in parts])

    @torch.no_grad()
    def crop_one(self, image: Image.Image | Tensor | Raster) -> Tensor:
        """Crop one image in a loader's worker: PIL or (C, H, W) -> (C, S, S) of the same type."""
        pixels = pixels_of(image)
        out = self._center(pixels[None])[0]
        if out.dtype == pixels.dtype:
            return out.contiguous()
        return out.mul(255).round_().to(torch.uint8)

    @torch.no_grad()
    def finish(self, crops: Tensor) -> Tensor:
        """Convert and normalize crops (B, C, S, S), uint8 or float in [0, 1], to float32."""
        planes = to_planes(crops)
        to_space_(planes, self.space)
        if self.mean is not None and self.std is not None:
            normalize_(planes, self.mean, self.std)
        return planes.transpose(0, 1).contiguous()

    def fingerprint(self) -> str:
        """Hash of everything the view depends on."""
        raw = [self.value_range, self.clip] if self.value_range is not None else []
        return described([type(self), self.arguments(), *raw])

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size (H, W) of an image after the resize, before the center crop."""
        if self.squash:
            return self.size, self.size
        if self.resize is None:
            return height, width
        short = min(height, width)
        return int(self.resize * height / short), int(self.resize * width / short)

    def of_pixels(self) -> EvalView:
        """A copy for images that are scaled to [0, 1] already."""
        other = copy.copy(self)
        other.value_range, other.clip = None, False
        return other

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments that build an equal view, without those that are None."""
        found = {key: getattr(self, key) for key in ("size", "resize", "fraction", "space")}
        found["interpolation"] = self.interpolation
        if self.mean is not None and self.std is not None:
            found |= {"mean": _floats(self.mean), "std": _floats(self.std)}
        if self.space == "rgb":
            del found["space"]  # the default, which also allows gray images
        found |= {"squash": True} if self.squash else {}
        return {key: value for key, value in found.items() if value is not None}

    def _pixels(self, images: Any, value_range: Sequence[float] | None) -> list[Tensor]:
        """Batches (B, C, H, W) of one size each, in order."""
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = from_array(_channels_first(images, self.channels), "images")
        if isinstance(images, Tensor) and images.ndim == 4:
            found = images.shape[1]
            if 0 in images.shape[1:]:
                raise ValueError(f"images must have pixels, got shape {tuple(images.shape)}")
            if self.channels not in (None, found):
                more = f": {_LAST}" if images.shape[3] == self.channels else ""
                raise ValueError(
                    f"images must have {self.channels} channels, got {found} (shape "
                    f"{tuple(images.shape)}){more}"
                )
            return [as_pixels(images, value_range, clip=self.clip)]
        several = list(images) if isinstance(images, list | tuple) else [images]
        if not several:
            raise ValueError("images must be a tensor (B, C, H, W) or a list of images, got []")
        pixels = [self._one(image, value_range) for image in several]
        if len({image.shape for image in pixels}) == 1:
            return [stack_pixels(pixels)]
        return [image[None] for image in pixels]

    def _one(self, image: Any, value_range: Sequence[float] | None) -> Tensor:
        if isinstance(image, str | Path):
            with Image.open(image) as opened:
                return self._one(opened, value_range)
        if not isinstance(image, Image.Image | np.ndarray | Tensor):
            raise ValueError(
                "images must be a tensor (B, C, H, W), an array (B, H, W, C), a PIL image, or a "
                f"list of images, got {describe(image)}"
            )
        given = image.shape[0] if isinstance(image, Tensor) and image.ndim == 3 else None
        if self.channels is None and given not in (None, 1, 3, 4):  # B gray images, or C channels
            raise ValueError(
                f"images must be a tensor (B, C, H, W) or (C, H, W) with 1, 3 or 4 channels, got "
                f"{describe(image)}; {_HINT}"
            )
        hint = f"; {_HINT}"
        return pixels_of(image, self.channels, value_range, True, hint=hint, clip=self.clip)

    def _center(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if self.fraction is not None:
            return self._central_fraction(to_planes(images).transpose(0, 1), self.fraction)
        if self.resize is not None or self.squash:
            if images.dtype != torch.uint8 or images.device.type != "cpu":
                images = to_planes(images).transpose(0, 1)  # only CPUs resize bytes
            size = self.resized(height, width)
            images = F.interpolate(images, size, mode=self.interpolation, antialias=True)
            if images.is_floating_point():
                images = images.clamp(0, 1)
        return center_crop(images, self.size)

    def _central_fraction(self, images: Tensor, fraction: float) -> Tensor:
        height, width = images.shape[2:]
        side = round(min(height, width) * fraction)
        box = torch.tensor(
            [[(height - side + 1) // 2, (width - side + 1) // 2, side, side]], device=images.device
        ).expand(len(images), -1)
        flip = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        planes = crop_planes(images, box, flip, self.size, self.interpolation, antialias=False)
        return planes.transpose(0, 1).clamp(0, 1)


_LAST = "images.permute(0, 3, 1, 2) puts channels first"
_HINT = "images of one channel are (B, 1, H, W), and a tensor's channels come first"


def _channels_first(images: np.ndarray, channels: int | None) -> np.ndarray:
    """A batch (B, H, W, C), or (B, C, H, W) where that is clear, as (B, C, H, W)."""
    likely = (1, 3, 4) if channels is None else (channels,)
    first, last = images.shape[1] in likely, images.shape[3] in likely
    if first == last:
        raise ValueError(
            f"an array of images must be (B, H, W, C) with C in {likely}, got {images.shape}; a "
            "tensor (B, C, H, W) may have any number of channels"
        )
    return images if first else images.transpose(0, 3, 1, 2)


def _floats(numbers: Sequence[float] | Tensor) -> list[float]:
    return numbers.flatten().tolist() if isinstance(numbers, Tensor) else [*map(float, numbers)]
