"""Image files to RGB pixels: any mode, upright, in reduced size where that is enough."""

from __future__ import annotations

import os
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

# What PIL raises for a file that is cut short, empty, of another kind or too large to be real.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
          Image.DecompressionBombError)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn by a quarter
_CHUNK = 256  # images that a process decodes at a time
_MANY = 4096  # images that are worth starting processes for (a fifth of a second each)


class UnequalSizesError(ValueError):
    """The images of a folder do not all have one size, so they do not make one array."""


def broken_error(path: str, error: BaseException) -> ValueError:
    """The error for an image that cannot be read."""
    return ValueError(
        f"cannot read the image {path} ({type(error).__name__}: {error}); mend or remove it, or "
        'use on_broken="skip" to leave out such images and count them'
    )


def open_image(path: str) -> Image.Image:
    """Read the header; the pixels come later."""
    return Image.open(path)


def _orientation(image: Image.Image) -> int:
    """1 to 8, as the EXIF tag says; 1 where there is none."""
    if image.format in ("JPEG", "PNG", "WEBP") and "exif" not in image.info:
        return 1  # spares most images the parsing
    return int(image.getexif().get(_ORIENTATION, 1))


def upright_size(image: Image.Image, upright: bool = True) -> tuple[int, int]:
    """(height, width) that `to_rgb` will give, without decoding."""
    width, height = image.size
    return (width, height) if upright and _orientation(image) >= 5 else (height, width)


def reduce(image: Image.Image, spare: float) -> None:
    """Let a JPEG's decoder halve the image (up to 1/8) where twice the wanted pixels remain.

    Args:
        image: not decoded yet; another format stays as it is.
        spare: how many times more pixels, a side, the image has than are wanted.
    """
    factor = 1
    while factor < 8 and spare >= 4 * factor:
        factor *= 2
    if factor > 1:
        image.draft("RGB", (image.width // factor, image.height // factor))


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """Decode; gray, palette, CMYK, transparent and 16-bit images become 8-bit RGB."""
    if upright and _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: PIL's own conversion clips instead of scaling
        gray = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # by way of RGBA, so that a palette with transparency does not warn
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """uint8 (C, H, W) of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class _Decoder:
    """Decodes batches of files to (images, errors); an error is (place in the batch, message)."""

    def __init__(self, paths: Sequence[str], size: tuple[int, int], upright: bool) -> None:
        self.paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self.size = size
        self.upright = upright

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, list[tuple[int, Exception]]]:
        out = np.zeros((len(index), 3, *self.size), dtype=np.uint8)
        errors: list[tuple[int, Exception]] = []
        for row, i in enumerate(index):
            path = os.fsdecode(bytes(self.paths[i]))
            try:
                with open_image(path) as image:
                    picture = np.asarray(to_rgb(image, self.upright))
            except BROKEN as error:
                errors.append((row, broken_error(path, error)))
                continue
            if picture.shape[:2] != self.size:
                errors.append((row, UnequalSizesError(_unequal(path, picture, self.size))))
                break
            out[row] = picture.transpose(2, 0, 1)
        return torch.from_numpy(out), errors


def decode_array(
    paths: Sequence[str], on_broken: str = "error", upright: bool = True, processes: int = 0
) -> tuple[Tensor, Tensor]:
    """Decode images of one size into one array; says on the terminal how long it took.

    Args:
        paths: N files.
        on_broken: "error" or "skip", which drops broken images and warns with their number.
        upright: turn photographs as their EXIF orientation says.
        processes: that decode; small sets are done in this one.

    Returns:
        (M, 3, H, W) uint8 and the (M,) positions in `paths` of the images that could be read.

    Raises:
        UnequalSizesError: the images do not all have one size.
        ValueError: a broken image (by choice), or not one that can be read.
    """
    begin = time.perf_counter()
    size = _first_size(paths, upright)
    loader: DataLoader[Any] = DataLoader(
        _Decoder(paths, size, upright),  # type: ignore[arg-type]
        batch_size=_CHUNK,
        num_workers=processes if len(paths) >= _MANY else 0,
        collate_fn=_as_it_is,
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
        raise ValueError(f"none of {len(paths)} images can be read, the first is {paths[0]}")
    bad = paths[int((~good).nonzero()[0])]
    rank_zero_warn(
        f"left out {len(paths) - len(rows)} of {len(paths)} images that cannot be read, the "
        f"first is {bad}"
    )
    return out[rows]


def _first_size(paths: Sequence[str], upright: bool) -> tuple[int, int]:
    for path in paths:
        try:
            with open_image(path) as image:
                return upright_size(image, upright)
        except BROKEN:
            continue  # reported when its turn comes
    return 1, 1


def _unequal(path: str, picture: np.ndarray, size: tuple[int, int]) -> str:
    height, width = picture.shape[:2]
    return (
        f"an array wants images of one size, got {height}x{width} in {path} and "
        f'{size[0]}x{size[1]} before; use decode="workers"'
    )


def _as_it_is(batch: Any) -> Any:
    return batch
