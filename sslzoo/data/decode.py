"""Image files to RGB pixels: any mode, upright, in reduced size where that is enough."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image, ImageOps
from torch import Tensor

# What PIL raises for a file that is cut short, empty, of another kind or too large to be real.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
          Image.DecompressionBombError)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn by a quarter
_CHUNK = 256  # images of one task of the pool


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


def _quarter_turned(image: Image.Image) -> bool:
    return int(image.getexif().get(_ORIENTATION, 1)) >= 5


def upright_size(image: Image.Image, upright: bool = True) -> tuple[int, int]:
    """(height, width) that `to_rgb` will give, without decoding."""
    width, height = image.size
    return (width, height) if upright and _quarter_turned(image) else (height, width)


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
    """Decode; grey, palette, CMYK, transparent and 16-bit images become 8-bit RGB."""
    if upright and image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: PIL's own conversion clips instead of scaling
        grey = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # by way of RGBA, so that a palette with transparency does not warn
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """uint8 (C, H, W) of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def decode_array(
    paths: Sequence[str], on_broken: str = "error", upright: bool = True, threads: int = 2
) -> tuple[Tensor, Tensor]:
    """Decode images of one size into one array; says on the terminal how long it took.

    Args:
        paths: N files.
        on_broken: "error" or "skip", which drops broken images and warns with their number.
        upright: turn photographs as their EXIF orientation says.
        threads: PIL decodes without Python's lock, so threads run side by side.

    Returns:
        (M, 3, H, W) uint8 and the (M,) positions in `paths` of the images that could be read.

    Raises:
        UnequalSizesError: the images do not all have one size.
        ValueError: a broken image (by choice), or not one that can be read.
    """
    begin = time.perf_counter()
    size = _first_size(paths, upright)
    out = torch.empty(len(paths), 3, *size, dtype=torch.uint8)
    good = np.ones(len(paths), dtype=bool)
    pixels = out.numpy()

    def work(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(paths))):
            good[i] = _decode_into(pixels[i], paths[i], size, on_broken, upright)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(work, range(0, len(paths), _CHUNK)):
            pass
    rows = torch.from_numpy(good.nonzero()[0])
    if not len(rows):
        raise ValueError(f"none of {len(paths)} images can be read, the first is {paths[0]}")
    if len(rows) < len(paths):
        bad = paths[int((~good).argmax())]
        rank_zero_warn(
            f"left out {len(paths) - len(rows)} of {len(paths)} images that cannot be read, "
            f"the first is {bad}"
        )
        out = out[rows]
    seconds = time.perf_counter() - begin
    rank_zero_info(
        f"Decoded {len(rows):,} images of {size[0]}x{size[1]} into memory "
        f"({out.numel() / 2**20:.0f} MiB) in {seconds:.1f} s"
    )
    return out, rows


def _first_size(paths: Sequence[str], upright: bool) -> tuple[int, int]:
    for path in paths:
        try:
            with open_image(path) as image:
                return upright_size(image, upright)
        except BROKEN:
            continue  # reported when its turn comes
    return 1, 1


def _decode_into(
    out: np.ndarray, path: str, size: tuple[int, int], on_broken: str, upright: bool
) -> bool:
    try:
        with open_image(path) as image:
            picture = to_rgb(image, upright)
    except BROKEN as error:
        if on_broken == "error":
            raise broken_error(path, error) from error
        return False
    if (picture.height, picture.width) != size:
        raise UnequalSizesError(
            f"an array wants images of one size, got {picture.height}x{picture.width} in {path} "
            f'and {size[0]}x{size[1]} before; use decode="workers"'
        )
    out[:] = np.asarray(picture).transpose(2, 0, 1)
    return True
