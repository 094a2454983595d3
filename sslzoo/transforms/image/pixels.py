"""Pixels of one image: PIL images, arrays and tensors as (C, H, W), with their own bit depth.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sslzoo.value_range import ValueRange, ValueRangeError, as_pixels, from_array

_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height
GRAY = ("1", "L")
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LIKELY = (1, 3, 4)  # numbers of channels that tell an axis of channels from one of pixels


class Decoding(NamedTuple):
    """How image files become pixels.

    Args:
        channels: 1 (gray), 3 (RGB) or 4 (RGBA): others are converted.
        value_range: the values of black and white; None: those of the file's type.
        upright: whether the EXIF orientation is applied.
        may_be_dark: whether images of 16 bits may use 12 bits or fewer.
    """

    channels: int = 3
    value_range: ValueRange | None = None
    upright: bool = True
    may_be_dark: bool = False

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """The pixels of an image: (C, H, W), uint8 or float32 from 0 to 1."""
        if isinstance(image, Tensor):
            return image
        return pil_pixels(image, *self)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 without the tag."""
    if image.format in ("JPEG", "PNG", "WEBP") and "exif" not in image.info:
        return 1  # most images need no parsing
    return int(image.getexif().get(_ORIENTATION, 1))


def upright_size(image: Image.Image | Tensor, upright: bool = True) -> tuple[int, int]:
    """(height, width) of the upright image, without decoding."""
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    width, height = image.size
    return (width, height) if upright and orientation(image) >= 5 else (height, width)


def is_deep(image: Image.Image) -> bool:
    """Whether an image has more than 8 bits per channel, without decoding."""
    return image.mode == "F" or image.mode.startswith("I") or _is_deep_color(image)


def pil_pixels(
    image: Image.Image,
    channels: int = 3,
    value_range: Sequence[float] | None = None,
    upright: bool = True,
    may_be_dark: bool = False,
) -> Tensor:
    """Decode a PIL image to (C, H, W): uint8, or float32 from 0 to 1 for more than 8 bits.

    Args:
        image: an image, decoded or not.
        channels: see `Decoding`.
        value_range: see `Decoding`.
        upright: see `Decoding`.
        may_be_dark: see `Decoding`.

    Raises:
        ValueRangeError: the values are not pixels, or Pillow would cut a color image of 16 bits.
    """
    if _is_deep_color(image):
        raise ValueRangeError(
            "color images must have 8 bits per channel, since Pillow cuts more, got 16 bits "
            f"({image.format}, {image.size[0]}x{image.size[1]}); convert them, or serve arrays by "
            "sslzoo.data.with_views"
        )
    if upright and orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if is_deep(image):
        pixels = as_pixels(_gray(image), value_range, may_be_dark=may_be_dark)[None]
        return pixels if channels == 1 else _with_gray(pixels, channels)
    if image.mode == "P":  # via RGBA, since PIL warns about palettes with transparency
        image = image.convert("RGBA")
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    array = np.array(image)
    pixels = torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1)
    return as_pixels(pixels, value_range)


def _is_deep_color(image: Image.Image) -> bool:
    """Whether Pillow reads 8 of 16 bits: the raw mode of a file that is not decoded yet."""
    if image.mode not in ("RGB", "RGBA", "LA", "RGBX", "CMYK", "LAB"):
        return False
    tiles = getattr(image, "tile", None) or []
    arguments = tiles[0][3] if tiles else ""
    if image.format == "PPM" and isinstance(arguments, tuple):
        return len(arguments) > 1 and isinstance(arguments[1], int) and arguments[1] > 255
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw, str) and ";16" in raw and raw not in ("BGR;16", "BGR;15")


def _gray(image: Image.Image) -> Tensor:
    """The values (H, W) of a gray image of 16 or 32 bits."""
    whole = image.mode == "I" and image.format == "PPM"  # Pillow scales these to 16 bits
    array = np.array(image)
    return from_array(array.astype(np.uint16) if whole else array, "images")


def _with_gray(pixels: Tensor, channels: int) -> Tensor:
    colors = pixels.expand(3, -1, -1)
    return colors.contiguous() if channels == 3 else torch.cat([colors, torch.ones_like(pixels)])


def pixels_of(
    image: Any,
    channels: int | None = None,
    value_range: Sequence[float] | None = None,
    upright: bool = False,
    may_be_dark: bool = False,
    hint: str = "",
) -> Tensor:
    """One image as (C, H, W), uint8 or float32 from 0 to 1, without losing channels or bits.

    Args:
        image: a PIL image, an array (H, W), (H, W, C) or (C, H, W), or a tensor (C, H, W) or
            (H, W). A gray PIL image is repeated if 3 channels are wanted.
        channels: C that the image must have; None: any.
        value_range: the values of black and white; None: those of the type.
        upright: whether the EXIF orientation of a PIL image is applied.
        may_be_dark: see `Decoding`.
        hint: what else the error proposes.

    Raises:
        ValueError: it is no image, its channels cannot be told, or are others.
    """
    if isinstance(image, Image.Image):
        found = _channels_of(image)
        if found != channels and not (found == 1 and channels == 3):
            more = f'; convert it: image.convert("{_MODES.get(channels or 3, "RGB")}")'
            _check_channels(found, channels, f"mode {image.mode}", more)
        wanted = 3 if channels == 3 else found
        if image.mode in ALPHA and channels != 4:
            raise ValueError(
                f"an image must have no alpha channel, got mode {image.mode}; convert it: "
                'image.convert("RGB")'
            )
        return pil_pixels(image, wanted, value_range, upright, may_be_dark)
    if isinstance(image, np.ndarray):
        values, first = from_array(image, "images"), _array_layout(image, channels)
    elif isinstance(image, Tensor):
        values, first = image, _tensor_layout(image, channels)
    else:
        first = None
    if first is None:
        raise ValueError(
            "an image must be a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W), "
            f"got {describe(image)}{hint}"
        )
    if values.ndim == 2:
        values = values[None]
    values = values if first else values.permute(2, 0, 1)
    _check_channels(len(values), channels, f"shape {tuple(image.shape)}", "")
    return as_pixels(values, value_range, may_be_dark=may_be_dark)


def describe(image: Any) -> str:
    """Type, dtype and shape for an error: "Tensor torch.uint8 (10, 10, 3)"."""
    if isinstance(image, str | bytes):
        return f"{type(image).__name__} {image!r:.60}; PIL.Image.open reads a file"
    parts = [type(image).__name__]
    parts += [str(image.dtype)] if hasattr(image, "dtype") else []
    parts += [str(tuple(image.shape))] if hasattr(image, "shape") else []
    return " ".join(parts)


def _channels_of(image: Image.Image) -> int:
    if image.mode in GRAY or image.mode == "F" or image.mode.startswith("I"):
        return 1
    return 4 if image.mode in ALPHA else 3


def _check_channels(found: int, wanted: int | None, got: str, more: str) -> None:
    if wanted is not None and found != wanted:
        raise ValueError(f"images must have {wanted} channels, got {found} ({got}){more}")


def _tensor_layout(image: Tensor, channels: int | None) -> bool | None:
    """Whether channels come first; None if that is not clear. Tensors are (C, H, W)."""
    if image.ndim == 2:
        return True
    if image.ndim != 3 or not image.numel():
        return None
    likely = _LIKELY if channels is None else (channels,)
    if image.shape[0] in likely:
        return True
    return None if image.shape[-1] in likely else True


def _array_layout(image: np.ndarray, channels: int | None) -> bool | None:
    """Whether channels come first; None if that is not clear. Arrays are usually (H, W, C)."""
    if image.ndim == 2 and image.size:
        return True
    if image.ndim != 3 or not image.size:
        return None
    likely = _LIKELY if channels is None else (channels,)
    first, last = image.shape[0] in likely, image.shape[-1] in likely
    return None if first == last else first


def stack_pixels(images: Sequence[Tensor]) -> Tensor:
    """Stack images of one shape; if some are floats, all become floats from 0 to 1."""
    if len({image.dtype for image in images}) > 1:
        images = [x / 255 if x.dtype == torch.uint8 else x for x in images]
    return torch.stack(list(images))
