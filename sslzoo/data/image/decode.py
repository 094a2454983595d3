"""Decode image files to 8-bit RGB, upright, and at reduced size if that suffices."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo.data.listing import pack_paths, unpack_path
from sslzoo.data.loader import keep_batch

# The errors of PIL for a file that is truncated, empty, of another kind or a decompression bomb.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
          Image.DecompressionBombError)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height
_CHUNK = 256  # images that a process decodes at a time
_MANY = 4096  # number of images above which processes pay off (each takes 0.2 s to start)


class UnequalSizesError(ValueError):
    """The images of a folder differ in size."""


def broken_error(path: str, error: BaseException) -> ValueError:
    """The error for an unreadable image."""
    return ValueError(
        f"cannot read the image {path} ({type(error).__name__}: {error}); repair or remove it, or "
        'set on_broken="skip" to skip and count such images'
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 without the tag."""
    if image.format in ("JPEG", "PNG", "WEBP") and "exif" not in image.info:
        return 1  # most images need no parsing
    return int(image.getexif().get(_ORIENTATION, 1))


def upright_size(image: Image.Image, upright: bool = True) -> tuple[int, int]:
    """(height, width) of the result of `to_rgb`, without decoding."""
    width, height = image.size
    return (width, height) if upright and _orientation(image) >= 5 else (height, width)


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


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """Decode; gray, palette, CMYK, transparent and 16-bit images are converted to 8-bit RGB."""
    if upright and _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: PIL's conversion would clip instead of scale
        gray = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # via RGBA, since PIL warns about palettes with transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to uint8 (C, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class _Decoder:
    """Decodes batches of files to (images, errors); an error is (row of the batch, exception)."""

    def __init__(self, paths: Sequence[str], size: tuple[int, int], upright: bool) -> None:
        self.paths = pack_paths(paths)
        self.size = size
        self.upright = upright

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, list[tuple[int, Exception]]]:
        out = np.zeros((len(index), 3, *self.size), dtype=np.uint8)
        errors: list[tuple[int, Exception]] = []
        for row, i in enumerate(index):
            path = unpack_path(self.paths[i])
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(to_rgb(image, self.upright))
            except BROKEN as error:
                errors.append((row, broken_error(path, error)))
                continue
            if pixels.shape[:2] != self.size:
                errors.append((row, UnequalSizesError(_unequal(path, pixels, self.size))))
                break
            out[row] = pixels.transpose(2, 0, 1)
        return torch.from_numpy(out), errors


def decode_array(
    paths: Sequence[str], on_broken: str = "error", upright: bool = True, processes: int = 0
) -> tuple[Tensor, Tensor]:
    """Decode images of one size into one array, and log the time it took.

    Args:
        paths: N files.
        on_broken: raise an "error" for an unreadable image, or "skip" it with a warning.
        upright: apply the EXIF orientation.
        processes: number of decoding processes; small sets are decoded in this one.

    Returns:
        (M, 3, H, W) uint8 images, and the (M,) positions in `paths` of the readable ones.

    Raises:
        UnequalSizesError: the images differ in size.
        ValueError: an image is unreadable (with "error"), or all are.
    """
    begin = time.perf_counter()
    size = _first_size(paths, upright)
    loader: DataLoader[Any] = DataLoader(
        _Decoder(paths, size, upright),  # type: ignore[arg-type]
        batch_size=_CHUNK,
        num_workers=processes if len(paths) >= _MANY else 0,
        collate_fn=keep_batch,
        generator=torch.Generator(),
    )
    out = torch.empty(len(paths), 3, *size, dtype=torch.uint8)
    good = torch.ones(len(paths), dtype=torch.bool)
    for start, (images, errors) in zip(range(0, len(paths), _CHUNK), loader, strict=True):
        for row, error in errors:
            if on_broken == "error" or isinstance(error, UnequalSizesError):
                raise error
            good[start + row] = False
        out[start : start + _CHUNK] = images
    rows = good.nonzero()[:, 0]
    if len(rows) < len(paths):
        out = _leave_out(out, rows, paths, good)
    seconds = time.perf_counter() - begin
    rank_zero_info(
        f"Decoded {len(rows):,} images of {size[0]}x{size[1]} into memory "
        f"({out.numel() / 2**20:.0f} MiB) in {seconds:.1f} s"
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


def _first_size(paths: Sequence[str], upright: bool) -> tuple[int, int]:
    for path in paths:
        try:
            with Image.open(path) as image:
                return upright_size(image, upright)
        except BROKEN:
            continue  # decoding reports it
    return 1, 1


def _unequal(path: str, pixels: np.ndarray, size: tuple[int, int]) -> str:
    height, width = pixels.shape[:2]
    return (
        f"images of an array must have one size, got {height}x{width} in {path} and "
        f'{size[0]}x{size[1]} before; set decode="workers"'
    )
