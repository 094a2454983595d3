"""Pixels of one image: PIL images, arrays and tensors as (C, H, W), with their own bit depth.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

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


Reader = Callable[[str], Any]  # a user's function: path -> array


@final
class Raster:
    """An image file that is read by windows, with its own channels and bits.

    Args:
        shape: (C, H, W).
        read: (top, left, height, width) -> array (C, height, width).
        value_range: the values of black and white, where the file tells them.
        is_deep: whether it has more than 8 bits per channel.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        read: Callable[[int, int, int, int], np.ndarray],
        value_range: ValueRange | None = None,
        is_deep: bool = True,
    ) -> None:
        self.shape, self.read, self.value_range, self.is_deep = shape, read, value_range, is_deep
        self._decoding: Decoding | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as of a PIL image."""
        return self.shape[2], self.shape[1]

    def part(self, box: Sequence[int]) -> Raster:
        """The window (top, left, height, width) as an image of its own."""
        top, left, height, width = box

        def read(down: int, right: int, tall: int, wide: int) -> np.ndarray:
            return self.read(top + down, left + right, tall, wide)

        return Raster((self.shape[0], height, width), read, self.value_range, self.is_deep)

    def decoded(self, decoding: Decoding) -> Raster:
        """The same file, whose pixels are made as `decoding` says.

        Raises:
            ValueRangeError: it has other channels.
        """
        found, wanted = self.shape[0], decoding.channels
        if wanted not in (None, found) and not (found == 1 and wanted == 3):
            raise ValueRangeError(
                f"images must have {wanted} channels, got {found}; set channels={found}"
            )
        other = Raster(self.shape, self.read, self.value_range, self.is_deep)
        other._decoding = decoding
        if found == 1 and wanted == 3:
            other.shape = (3, *self.shape[1:])
        return other

    def pixels(self, box: Sequence[int] | None = None) -> Tensor:
        """Pixels (C, height, width) of a box (top, left, height, width); None: all.

        They are uint8, or float32 from 0 to 1.

        Raises:
            ValueRangeError: the values are not pixels.
        """
        how = self._decoding or Decoding(None)
        window = (0, 0, *self.shape[1:]) if box is None else tuple(box)
        values = from_array(self.read(*window), "images")
        known = self.value_range if how.value_range is None else how.value_range
        out = as_pixels(values, known, may_be_dark=how.may_be_dark, clip=how.clip)
        return out if len(out) == self.shape[0] else out.expand(self.shape[0], -1, -1).contiguous()


class Decoding(NamedTuple):
    """How image files become pixels.

    Args:
        channels: C. Photographs of 8 bits are converted to 1 (gray), 3 (RGB) or 4 (RGBA), and one
            channel is repeated to 3; other files must have as many. None: those of the file.
        value_range: the values of black and white; None: those of the file's type.
        upright: whether the EXIF orientation is applied.
        may_be_dark: whether images of 16 bits may use 12 bits or fewer.
        clip: whether values outside `value_range` are clipped.
        reader: reads every file, path -> array (H, W), (H, W, C) or (C, H, W); None: by format.
    """

    channels: int | None = 3
    value_range: ValueRange | None = None
    upright: bool = True
    may_be_dark: bool = False
    clip: bool = False
    reader: Reader | None = None

    def __call__(self, image: Image.Image | Tensor | Raster) -> Tensor:
        """The pixels of an image: (C, H, W), uint8 or float32 from 0 to 1."""
        found = self.lazily(image)
        return found.pixels() if isinstance(found, Raster) else found

    def lazily(self, image: Image.Image | Tensor | Raster) -> Tensor | Raster:
        """As a call, but a `Raster` is left unread, so that a crop reads its box alone."""
        if isinstance(image, Tensor):
            return image
        if isinstance(image, Raster):
            return image.decoded(self)
        return pil_pixels(image, *self[:5])


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 without the tag."""
    if image.format in ("JPEG", "PNG", "WEBP") and "exif" not in image.info:
        return 1  # most images need no parsing
    return int(image.getexif().get(_ORIENTATION, 1))


def upright_size(image: Image.Image | Tensor | Raster, upright: bool = True) -> tuple[int, int]:
    """(height, width) of the upright image, without decoding."""
    if isinstance(image, Tensor | Raster):
        return int(image.shape[-2]), int(image.shape[-1])
    width, height = image.size
    return (width, height) if upright and orientation(image) >= 5 else (height, width)


def is_deep(image: Image.Image | Raster) -> bool:
    """Whether an image has more than 8 bits per channel, without decoding."""
    if isinstance(image, Raster):
        return image.is_deep
    return image.mode == "F" or image.mode.startswith("I") or is_deep_color(image)


def pil_pixels(
    image: Image.Image,
    channels: int | None = 3,
    value_range: Sequence[float] | None = None,
    upright: bool = True,
    may_be_dark: bool = False,
    clip: bool = False,
) -> Tensor:
    """Decode a PIL image to (C, H, W): uint8, or float32 from 0 to 1 for more than 8 bits.

    Args:
        image: an image, decoded or not.
        channels: see `Decoding`.
        value_range: see `Decoding`.
        upright: see `Decoding`.
        may_be_dark: see `Decoding`.
        clip: see `Decoding`.

    Raises:
        ValueRangeError: the values are not pixels, Pillow would cut a color image of 16 bits, or
            Pillow has no images of so many channels.
    """
    channels = num_channels(image) if channels is None else channels
    if channels not in _MODES:
        found = num_channels(image)
        raise ValueRangeError(
            f"images must have {channels} channels, got {found} (mode {image.mode}); set "
            f"channels={found}"
        )
    if is_deep_color(image):
        raise ValueRangeError(
            "color images must have 8 bits per channel, since Pillow cuts more, got 16 bits "
            f"({image.format}, {image.size[0]}x{image.size[1]}); convert them to TIFF or .npy, or "
            "name a function that reads them by reader="
        )
    if upright and orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if is_deep(image):
        values = _gray(image)
        pixels = as_pixels(values, value_range, may_be_dark=may_be_dark, clip=clip)[None]
        return pixels if channels == 1 else _with_gray(pixels, channels)
    if image.mode == "P":  # via RGBA, since PIL warns about palettes with transparency
        image = image.convert("RGBA")
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    array = np.array(image)
    pixels = torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1)
    return as_pixels(pixels, value_range, clip=clip)


def is_deep_color(image: Image.Image) -> bool:
    """Whether Pillow reads 8 of 16 bits: the raw mode of a file that is not decoded yet."""
    if image.mode not in ("RGB", "RGBA", "LA", "RGBX", "CMYK", "LAB"):
        return False
    if image.format == "JPEG2000":
        return _jpeg2000_bits(image) > 8
    tiles = getattr(image, "tile", None) or []
    arguments = tiles[0][3] if tiles else ""
    if image.format == "PPM" and isinstance(arguments, tuple):
        return len(arguments) > 1 and isinstance(arguments[1], int) and arguments[1] > 255
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw, str) and ";16" in raw and raw not in ("BGR;16", "BGR;15")


def _jpeg2000_bits(image: Image.Image) -> int:
    """Bits of the first channel, from the marker SIZ of the codestream; 8 if it is not found."""
    file = getattr(image, "fp", None)
    if file is None:
        return 8
    place = file.tell()
    file.seek(0)
    head = file.read(1 << 16)
    file.seek(place)
    start = head.find(b"\xff\x4f\xff\x51")
    return (head[start + 42] & 0x7F) + 1 if 0 <= start < len(head) - 42 else 8


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
    clip: bool = False,
) -> Tensor:
    """One image as (C, H, W), uint8 or float32 from 0 to 1, without losing channels or bits.

    Args:
        image: a PIL image, an array (H, W), (H, W, C) or (C, H, W), a tensor (C, H, W) or
            (H, W), or a `Raster`, whose decoding decides. A gray PIL image is repeated if 3
            channels are wanted.
        channels: C that the image must have; None: any.
        value_range: the values of black and white; None: those of the type.
        upright: whether the EXIF orientation of a PIL image is applied.
        may_be_dark: see `Decoding`.
        hint: what else the error proposes.
        clip: see `Decoding`.

    Raises:
        ValueError: it is no image, its channels cannot be told, or are others.
    """
    if isinstance(image, Raster):
        return image.pixels()
    if isinstance(image, Image.Image):
        found = num_channels(image)
        if found != channels and not (found == 1 and channels == 3):
            more = f'; convert it: image.convert("{_MODES.get(channels or 3, "RGB")}")'
            _check_channels(found, channels, f"mode {image.mode}", more)
        wanted = 3 if channels == 3 else found
        if image.mode in ALPHA and channels != 4:
            raise ValueError(
                f"an image must have no alpha channel, got mode {image.mode}; convert it: "
                'image.convert("RGB")'
            )
        return pil_pixels(image, wanted, value_range, upright, may_be_dark, clip)
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
    return as_pixels(values, value_range, may_be_dark=may_be_dark, clip=clip)


def describe(image: Any) -> str:
    """Type, dtype and shape for an error: "Tensor torch.uint8 (10, 10, 3)"."""
    if isinstance(image, str | bytes):
        return f"{type(image).__name__} {image!r:.60}; PIL.Image.open reads a file"
    parts = [type(image).__name__]
    parts += [str(image.dtype)] if hasattr(image, "dtype") else []
    parts += [str(tuple(image.shape))] if hasattr(image, "shape") else []
    return " ".join(parts)


def num_channels(image: Image.Image) -> int:
    """Channels of a PIL image; those of a palette's colors are 3."""
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
    if channels is None and not first and not last and image.shape[0] != image.shape[-1]:
        return image.shape[0] < image.shape[-1]  # bands are fewer than pixels
    return None if first == last else first


def stack_pixels(images: Sequence[Tensor]) -> Tensor:
    """Stack images of one shape; if some are floats, all become floats from 0 to 1."""
    if len({image.dtype for image in images}) > 1:
        images = [x / 255 if x.dtype == torch.uint8 else x for x in images]
    return torch.stack(list(images))
