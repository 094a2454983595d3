"""Decode image files into one array, and check a sample of them before training."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo.data.batch_memory import collate_for
from sslzoo.data.image.rasters import open_image
from sslzoo.data.listing import pack_paths, spread, unpack_path
from sslzoo.transforms.image.pixels import (
    ALPHA,
    GRAY,
    Decoding,
    Raster,
    is_deep,
    num_channels,
    upright_size,
)
from sslzoo.value_range import TooDarkError, ValueRangeError

# The errors of readers for a file that is truncated, empty, of another kind or a decompression
# bomb.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
          KeyError, AttributeError, NotImplementedError, Image.DecompressionBombError)  # fmt: skip
_CHUNK = 256  # images that a process decodes at a time
_SAMPLE = 16  # images that are checked before training
_WINDOW = 1024  # side of the part of a large one that is checked
_MANY = 4096  # number of images above which processes pay off (each takes 0.2 s to start)


class UnequalSizesError(ValueError):
    """The images of a folder differ in size or bit depth."""


def broken_error(path: str, error: BaseException) -> ValueError:
    """The error for an unreadable image."""
    return ValueError(
        f"cannot read the image {path} ({type(error).__name__}: {error}); repair or remove it, or "
        'set on_broken="skip" to skip and count such images'
    )


def reduce(image: Image.Image, spare: float) -> None:
    """Let the JPEG decoder downscale an image to no less than twice the needed size.

    Args:
        image: an image that is not decoded yet; only a JPEG is reduced.
        spare: ratio of the image's side to the needed side.
    """
    factor = 1
    while factor < 8 and spare >= 4 * factor:
        factor *= 2
    if factor > 1:
        image.draft("RGB", (image.width // factor, image.height // factor))


def in_file(path: str, error: ValueRangeError) -> ValueRangeError:
    """The error with the file that holds the values."""
    return ValueRangeError(f"{error}; the file is {path}")


def check_sample(paths: Sequence[str], decoding: Decoding) -> Decoding:
    """Check the values of a few evenly spaced images, and say how channels are converted.

    Only images of more than 8 bits, or with a declared range, are decoded, and of large files that
    are read by windows the center.

    Returns:
        The decoding, under which single images of 16 bits may be dark: the sample is not. Its
        channels are those of the first readable image, if they were None.

    Raises:
        ValueRangeError: an image's values are not pixels, or none of 16 bits has more than 12.
    """
    dark: ValueRangeError | None = None
    bright = False
    modes: dict[str, str] = {}
    several = None
    channels = decoding.channels
    for row in spread(len(paths), _SAMPLE):
        path = paths[row]
        try:
            with open_image(path, decoding.channels, decoding.reader) as image:
                if isinstance(image, Raster):
                    channels = channels or image.shape[0]
                    pixels = image.decoded(decoding).pixels(_center(image))
                    bright |= image.value_range is None and pixels.is_floating_point()
                    continue
                channels = channels or num_channels(image)
                modes.setdefault(image.mode, path)
                frames = getattr(image, "n_frames", 1)
                several = path if frames > 1 else several
                declared = decoding.value_range is not None or channels not in (1, 3, 4)
                if declared or is_deep(image):
                    decoding(image)
                    bright |= image.mode.startswith("I")
        except TooDarkError as error:
            dark = dark or in_file(path, error)
        except ValueRangeError as error:
            raise in_file(path, error) from error
        except BROKEN:
            continue  # reading a batch reports it
    if dark is not None and not bright:
        raise dark
    say_conversion(modes, channels)
    if several is not None:
        rank_zero_warn(f"only the first frame of images such as {several} is read")
    return decoding._replace(may_be_dark=True, channels=channels)


def _center(image: Raster) -> tuple[int, int, int, int]:
    _, height, width = image.shape
    tall, wide = min(height, _WINDOW), min(width, _WINDOW)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def say_conversion(modes: dict[str, str], channels: int | None) -> None:
    """Say that alpha channels are dropped, or that gray is repeated.

    Args:
        modes: an image of each mode.
        channels: C that images are converted to.
    """
    alpha = next((path for mode, path in modes.items() if mode in ALPHA), None)
    if alpha is not None and channels != 4:
        rank_zero_warn(
            f"the alpha channel of images such as {alpha} is dropped; set channels=4 to keep it"
        )
    if channels == 3 and modes and all(mode in GRAY or mode[0] in "IF" for mode in modes):
        rank_zero_info("Gray images are repeated to 3 channels; channels=1 keeps one.")


class _Decoder:
    """Decodes batches of files to (images, errors); an error is (row of the batch, exception)."""

    def __init__(
        self, paths: Sequence[str], size: tuple[int, int], deep: bool, decoding: Decoding
    ) -> None:
        self.paths = pack_paths(paths)
        self.size, self.deep, self.decoding = size, deep, decoding
        self.channels = 3 if decoding.channels is None else decoding.channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, list[tuple[int, Exception]]]:
        shape = len(index), self.channels, *self.size
        out = torch.zeros(shape, dtype=torch.float32 if self.deep else torch.uint8)
        errors: list[tuple[int, Exception]] = []
        for row, i in enumerate(index):
            path = unpack_path(self.paths[i])
            try:
                with open_image(path, self.decoding.channels, self.decoding.reader) as image:
                    pixels = self.decoding(image)
            except ValueRangeError as error:
                errors.append((row, in_file(path, error)))
                break
            except BROKEN as error:
                errors.append((row, broken_error(path, error)))
                continue
            if pixels.shape[1:] != self.size:
                errors.append((row, UnequalSizesError(_unequal(path, pixels, self.size))))
                break
            if pixels.is_floating_point() and not self.deep:
                errors.append((row, UnequalSizesError(_UNEQUAL_DEPTH.format(path))))
                break
            deeper = self.deep and pixels.dtype == torch.uint8
            out[row] = pixels / 255 if deeper else pixels
        return out, errors


def decode_array(
    paths: Sequence[str],
    on_broken: str = "error",
    decoding: Decoding = Decoding(),  # noqa: B008 (a named tuple of numbers)
    processes: int = 0,
) -> tuple[Tensor, Tensor]:
    """Decode images of one size into one array, and log the time it took.

    Args:
        paths: N files.
        on_broken: raise an "error" for an unreadable image, or "skip" it with a warning.
        decoding: how a file becomes pixels.
        processes: number of decoding processes; small sets are decoded in this one.

    Returns:
        (M, C, H, W) images, uint8 or float32 in [0, 1], and the (M,) positions in `paths` of the
        readable ones.

    Raises:
        UnequalSizesError: the images differ in size or bit depth.
        ValueError: an image is unreadable (with "error"), or all are.
    """
    begin = time.perf_counter()
    size, deep, channels = _first(paths, decoding)
    decoding = decoding._replace(channels=decoding.channels or channels)
    deep = deep or decoding.value_range not in (None, (0, 255))
    workers = processes if len(paths) >= _MANY else 0
    loader: DataLoader[Any] = DataLoader(
        _Decoder(paths, size, deep, decoding),  # type: ignore[arg-type]
        batch_size=_CHUNK,
        num_workers=workers,
        collate_fn=collate_for(workers),
        generator=torch.Generator(),
    )
    dtype = torch.float32 if deep else torch.uint8
    out = torch.empty(len(paths), decoding.channels or channels, *size, dtype=dtype)
    good = torch.ones(len(paths), dtype=torch.bool)
    for start, (images, errors) in zip(range(0, len(paths), _CHUNK), loader, strict=True):
        for row, error in errors:
            if on_broken == "error" or isinstance(error, UnequalSizesError | ValueRangeError):
                raise error
            good[start + row] = False
        out[start : start + _CHUNK] = images
    rows = good.nonzero()[:, 0]
    if len(rows) < len(paths):
        out = _leave_out(out, rows, paths, good)
    seconds = time.perf_counter() - begin
    rank_zero_info(
        f"Decoded {len(rows):,} images of {size[0]}x{size[1]} into memory "
        f"({out.nbytes / 2**20:.0f} MiB) in {seconds:.1f} s"
    )
    return out, rows


def _leave_out(out: Tensor, rows: Tensor, paths: Sequence[str], good: Tensor) -> Tensor:
    if not len(rows):
        raise ValueError(f"all {len(paths)} images are unreadable, the first is {paths[0]}")
    bad = paths[int((~good).nonzero()[0])]
    rank_zero_warn(
        f"skipped {len(paths) - len(rows)} of {len(paths)} images that are unreadable, the first "
        f"is {bad}"
    )
    return out[rows]


def _first(paths: Sequence[str], decoding: Decoding) -> tuple[tuple[int, int], bool, int]:
    """Size of the first readable image, whether it has more than 8 bits, and its channels."""
    for path in paths:
        try:
            with open_image(path, decoding.channels, decoding.reader) as image:
                count = image.shape[0] if isinstance(image, Raster) else num_channels(image)
                return upright_size(image, decoding.upright), is_deep(image), count
        except BROKEN:
            continue  # decoding reports it
    return (1, 1), False, 3


_UNEQUAL_DEPTH = (
    "images of an array must have one bit depth, got more than 8 bits in {} and 8 bits before; set "
    'decode="workers"'
)


def _unequal(path: str, pixels: Tensor, size: tuple[int, int]) -> str:
    height, width = pixels.shape[1:]
    return (
        f"images of an array must have one size, got {height}x{width} in {path} and "
        f'{size[0]}x{size[1]} before; set decode="workers"'
    )
