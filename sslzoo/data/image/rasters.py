"""Open image files with all of their channels and bits; arrays are read by windows.

Pillow reads photographs. TIFF of more than 8 bits or other channels needs tifffile, HDF5 h5py, Zarr
zarr and DICOM pydicom (extra `science`); NumPy arrays and color PNG of 16 bits need nothing.
Uncompressed or tiled TIFF, Zarr, HDF5 and .npy are read where a crop lies, other files whole.
Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from sslzoo.transforms.image.pixels import Raster, Reader, is_deep_color
from sslzoo.value_range import ValueRange, ValueRangeError

_LARGE = 1 << 22  # pixels of a TIFF above which Pillow would decode more than a crop needs
_WHITE_IS_ZERO, _PALETTE, _YCBCR = 0, 3, 6  # TIFF's photometric interpretations
_DEFLATE = (8, 32946)  # TIFF's compressions that are zlib's
_SEPARATE = 2  # TIFF's planar configuration of one plane per channel
_NUMPY = b"\x93NUMPY"  # the first bytes of formats
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MODES = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I;16B", "I;16L")


def needed(package: str, path: str) -> Any:
    """Import an optional package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs the package {package}, which is not installed; run pip install "
            "'sslzoo[science]'"
        ) from error


def array_raster(
    array: Any,
    channels: int | None,
    value_range: ValueRange | None = None,
    axis: int | None = None,
) -> Raster:
    """An array as an image; it may be memory-mapped, or of HDF5 or Zarr.

    Args:
        array: (H, W), (H, W, C) or (C, H, W), besides axes of length 1; it has `shape` and
            `dtype`, and slices of it are read.
        channels: C, if known.
        value_range: see `Raster`.
        axis: the axis of channels, 0 or 2; None: the one with `channels`, or else the shorter.

    Raises:
        ValueRangeError: it has other axes, or both may be that of channels.
    """
    shape = tuple(int(side) for side in array.shape)
    spare = [i for i, side in enumerate(shape) if side == 1][: max(0, len(shape) - 3)]
    fixed: list[Any] = [0 if i in spare else slice(None) for i in range(len(shape))]
    kept = [i for i in range(len(shape)) if i not in spare]
    sides = [shape[i] for i in kept]
    if len(sides) not in (2, 3) or not all(sides):
        raise ValueRangeError(
            f"an array of an image must be (H, W), (H, W, C) or (C, H, W), got {shape}; store "
            "it so, or name a function that reads it by reader= of ImageFolder or ImageList"
        )
    first = len(sides) == 3 and _first(sides, channels, axis)
    height, width = (sides[1:] if first else sides[:2])[:2]
    count = 1 if len(sides) == 2 else sides[0 if first else 2]
    rows, columns = (kept[1], kept[2]) if first else (kept[0], kept[1])

    def read(top: int, left: int, tall: int, wide: int) -> np.ndarray:
        where = list(fixed)
        where[rows], where[columns] = slice(top, top + tall), slice(left, left + wide)
        part = np.asarray(array[tuple(where)])
        if part.ndim == 2:
            return part[None]
        return part if first else part.transpose(2, 0, 1)

    deep = np.dtype(array.dtype) not in (np.dtype(np.uint8), np.dtype(np.bool_))
    return Raster((count, height, width), read, value_range, deep)


def _first(sides: Sequence[int], channels: int | None, axis: int | None) -> bool:
    """Whether channels come first."""
    if axis is not None:
        return axis == 0
    ends = sides[0] == channels, sides[2] == channels
    if ends[0] != ends[1]:
        return ends[0]
    if sides[0] == sides[2]:
        raise ValueRangeError(
            f"the channels of an array must be its first or last axis, got {tuple(sides)}, where "
            "both have one length; set channels or store it with other sides, or name a function "
            "that reads it by reader= of ImageFolder or ImageList"
        )
    return sides[0] < sides[2]


def open_image(
    path: str, channels: int | None = None, reader: Reader | None = None
) -> AbstractContextManager[Image.Image | Raster]:
    """Open an image file, decoding as little as possible.

    Args:
        path: the file, or the folder of a Zarr array.
        channels: C, if known, which tells the layout of an array.
        reader: see `Decoding`.

    Returns:
        A context: a PIL image where Pillow keeps channels and bits, or else a `Raster`.

    Raises:
        ValueRangeError: the file holds no image, or none whose bits can be kept.
        ImportError: its format needs a package that is not installed.
    """
    if reader is not None:
        return _read(path, channels, reader)
    suffix = os.path.splitext(path)[1].lower()
    opener = _OPENERS.get(suffix)
    if opener is None and _is_dicom(path, suffix):
        opener = _dicom
    return _pillow(path) if opener is None else opener(path, channels)


@contextmanager
def open_encoded(
    data: bytes, name: str, channels: int | None = None
) -> Iterator[Image.Image | Raster]:
    """Open the bytes of a photograph or of a .npy file.

    Args:
        data: the content of the file.
        name: its name, for errors.
        channels: C, if known, which tells the layout of an array.

    Raises:
        ValueRangeError: Pillow would not keep its channels and bits.
    """
    if data.startswith(_NUMPY):
        yield array_raster(np.load(io.BytesIO(data), allow_pickle=False), channels)
        return
    if data.startswith(_TIFF):
        kept = _kept_by_pillow(io.BytesIO(data))
        if kept is None:
            raise ValueRangeError(
                "a TIFF in a shard must be one whose channels and bits Pillow keeps, got another; "
                "store its array as .npy"
            )
        with kept:
            yield kept
        return
    with Image.open(io.BytesIO(data)) as image:
        if is_deep_color(image) and image.format == "PNG":
            yield array_raster(png_values(data, name), None, axis=2)
        else:
            yield image


@contextmanager
def _read(path: str, channels: int | None, reader: Reader) -> Iterator[Image.Image | Raster]:
    found = reader(path)
    if isinstance(found, Image.Image):
        yield found
        return
    array = found if hasattr(found, "shape") and hasattr(found, "dtype") else np.asarray(found)
    array = array.numpy() if hasattr(array, "numpy") else array
    yield array_raster(array, channels)


@contextmanager
def _pillow(path: str) -> Iterator[Image.Image | Raster]:
    with Image.open(path) as image:
        raster = _deep_color(image, path) if is_deep_color(image) else None
        yield image if raster is None else raster


def _deep_color(image: Image.Image, path: str) -> Raster | None:
    """A color image of 16 bits, of which Pillow would cut 8; None: of an unknown format."""
    if image.format == "PNG":
        return array_raster(png_values(Path(path).read_bytes(), path), None, axis=2)
    if image.format == "PPM":
        width, height = image.size
        _, _, offset, arguments = image.tile[0]  # type: ignore[attr-defined]
        raw = np.fromfile(path, ">u2", width * height * 3, offset=offset)
        most = arguments[1] if isinstance(arguments, tuple) else 65535
        return array_raster(raw.reshape(height, width, 3), None, (0.0, float(most)), 2)
    return None


_PNG_SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}  # by color type


def png_values(data: bytes, name: str) -> np.ndarray:
    """The values (H, W, C) uint16 of a PNG of 16 bits.

    A row's filter predicts each byte from the same byte of its neighbors, so every byte of a pixel
    is an image of 8 bits of its own, which Pillow decodes.

    Raises:
        ValueRangeError: it is interlaced.
    """
    width, height, bits, color, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if interlaced or bits != 16:
        raise ValueRangeError(
            f"a color PNG of 16 bits must not be interlaced, got {name}; save it again without"
        )
    step = 2 * _PNG_SAMPLES[color]
    packed = b"".join(body for kind, body in _png_chunks(data) if kind == b"IDAT")
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * step)
    gray = np.zeros((step, height + 1, width + 1), np.uint8)  # a row of zeros above each image
    gray[:, 1:, 0] = rows[:, 0]
    gray[:, 1:, 1:] = rows[:, 1:].reshape(height, width, step).transpose(2, 0, 1)
    header = struct.pack(">IIBBBBB", width, step * (height + 1), 8, 0, 0, 0, 0)
    body = zlib.compress(gray.tobytes(), 0)
    parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    whole = data[:8] + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in parts
    )
    with Image.open(io.BytesIO(whole)) as image:
        values = np.array(image).reshape(step, height + 1, width)[:, 1:].astype(np.uint16)
    return ((values[::2] << 8) | values[1::2]).transpose(1, 2, 0)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 8
    while start + 8 <= len(data):
        (length,) = struct.unpack(">I", data[start : start + 4])
        yield data[start + 4 : start + 8], data[start + 8 : start + 8 + length]
        start += length + 12


@contextmanager
def _tiff(path: str, channels: int | None) -> Iterator[Image.Image | Raster]:
    image = _kept_by_pillow(path)
    if image is not None:
        with image:
            yield image
        return
    tifffile = needed("tifffile", path)
    try:
        file = tifffile.TiffFile(path)
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error
    with file:
        yield _tiff_raster(file, path)


def _kept_by_pillow(path: str | io.BytesIO) -> Image.Image | None:
    """A TIFF of which Pillow keeps channels and bits, if it is not large; else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError):
        return None  # tifffile says whether it is a TIFF
    tags: Any = getattr(image, "tag_v2", {})
    bits, samples = tags.get(258, (1,)), tags.get(277, 1)
    plain = (len(image.getbands()) == samples and image.mode in _MODES) or image.mode == "P"
    converted = tags.get(262) == _YCBCR  # usually JPEG
    exact = max(bits) in (1, 8, 16) and tags.get(339, (1,))[0] == 1
    floats = image.mode == "F" and tuple(bits) == (32,)
    large = image.size[0] * image.size[1] > _LARGE
    kept = floats or (exact and (plain or converted) and not is_deep_color(image))
    kept = kept and (samples > 1 or getattr(image, "n_frames", 1) == 1)  # pages are channels
    if kept and (not large or converted or image.mode == "P"):
        return image
    image.close()
    return None


def _tiff_raster(file: Any, path: str) -> Raster:
    """The first series of a TIFF: one image, with channels as samples or as pages."""
    series = file.series[0]
    page = series.keyframe
    axes = "".join(a for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX")
    others = axes.replace("Y", "").replace("X", "")
    if len(others) > 1 or "YX" not in axes:
        raise ValueRangeError(
            f"a TIFF must have rows, columns and one axis of channels, got {series.axes} "
            f"{series.shape} in {path}; name a function that reads it by reader="
        )
    if page.photometric == _PALETTE:
        raise ValueRangeError(f"a TIFF must have no palette of 16 bits, got {path}; convert it")
    bits, kind = int(page.bitspersample), np.dtype(page.dtype)
    packed = kind.kind == "u" and bits < 8 * kind.itemsize and bits > 1
    known = (0.0, float((1 << bits) - 1)) if packed else None
    axis = None if not others else (0 if axes.index(others) == 0 else 2)
    flips = page.photometric == _WHITE_IS_ZERO and kind.kind == "u"
    most = (1 << bits) - 1
    if series.dataoffset is not None and not packed and not flips:
        array = np.memmap(
            path, kind.newbyteorder(file.byteorder), "r", series.dataoffset, tuple(series.shape)
        )
        return array_raster(array, None, known, axis)
    height, width = page.imagelength, page.imagewidth
    pages = [series.pages[i] for i in range(len(series.pages))]
    samples = page.samplesperpixel
    count = len(pages) * samples

    def read(top: int, left: int, tall: int, wide: int) -> np.ndarray:
        out = np.zeros((count, tall, wide), kind.newbyteorder("="))
        for number, own in enumerate(pages):
            own = own.aspage() if hasattr(own, "aspage") else own
            _read_segments(own, file.filehandle, out[number * samples :][:samples], top, left)
        return most - out if flips else out

    return Raster((count, height, width), read, known, kind != np.dtype(np.uint8))


def _read_segments(page: Any, handle: Any, out: np.ndarray, top: int, left: int) -> None:
    """Decode the tiles or strips of a page that meet a window, into `out` (S, h, w)."""
    tall, wide = out.shape[1:]
    length = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    span = page.tilewidth if page.is_tiled else page.imagewidth
    down, across = -(-page.imagelength // length), -(-page.imagewidth // span)
    separate = page.planarconfig == _SEPARATE
    for plane in range(len(out) if separate else 1):
        for y in range(top // length, (top + tall - 1) // length + 1):
            for x in range(left // span, (left + wide - 1) // span + 1):
                index = (plane * down + y) * across + x
                handle.seek(page.dataoffsets[index])
                data = handle.read(page.databytecounts[index])
                if not data:
                    continue  # an empty tile is 0
                first, start = y * length, x * span
                if page.bitspersample % 8:
                    samples = 1 if separate else page.samplesperpixel
                    tile = _unpacked(page, data, span, samples)
                else:
                    tile = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
                part = tile.transpose(2, 0, 1)  # (samples, rows, columns)
                rows = slice(max(top, first), min(top + tall, first + part.shape[1]))
                columns = slice(max(left, start), min(left + wide, start + part.shape[2]))
                target = out[plane : plane + 1] if separate else out
                target[:, rows.start - top : rows.stop - top, _moved(columns, left)] = part[
                    :, _moved(rows, first), _moved(columns, start)
                ]


def _unpacked(page: Any, data: bytes, columns: int, samples: int) -> np.ndarray:
    """The values (rows, columns, samples) of a tile or strip whose values are not whole bytes."""
    if page.compression in _DEFLATE:
        data = zlib.decompress(data)
    elif page.compression != 1 or page.predictor != 1:
        raise ValueError(
            f"a TIFF of {page.bitspersample} bits must have no compression or Deflate, without a "
            f"predictor, got {page.compression!r}; convert it"
        )
    bits, width = page.bitspersample, columns * samples
    row = -(-width * bits // 8)  # bytes
    raw = np.frombuffer(data, np.uint8)[: len(data) // row * row].reshape(-1, row)
    digits = np.unpackbits(raw, axis=1)[:, : width * bits].reshape(-1, width, bits)
    values = digits @ (1 << np.arange(bits)[::-1])
    return values.reshape(-1, columns, samples).astype(page.dtype)


def _moved(where: slice, by: int) -> slice:
    return slice(where.start - by, where.stop - by)


@contextmanager
def _numpy(path: str, channels: int | None) -> Iterator[Image.Image | Raster]:
    if path.lower().endswith(".npy"):
        yield array_raster(np.load(path, mmap_mode="r", allow_pickle=False), channels)
        return
    with np.load(path, allow_pickle=False) as arrays:
        yield array_raster(arrays[_only(arrays.files, path)], channels)


@contextmanager
def _hdf5(path: str, channels: int | None) -> Iterator[Image.Image | Raster]:
    h5py = needed("h5py", path)
    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visititems(lambda n, x: names.append(n) if isinstance(x, h5py.Dataset) else None)
        wide = [name for name in names if file[name].ndim >= 2 and file[name].dtype.kind in "buif"]
        yield array_raster(file[_only(wide, path)], channels)


@contextmanager
def _zarr(path: str, channels: int | None) -> Iterator[Image.Image | Raster]:
    yield array_raster(zarr_array(path), channels)


def zarr_array(path: str) -> Any:
    """The array of a Zarr store, or the one at full resolution of an OME-Zarr image."""
    zarr = needed("zarr", path)
    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Array):
        return node
    about = dict(node.attrs)
    scales = about.get("multiscales") or dict(about.get("ome") or {}).get("multiscales")
    if scales:
        return node[scales[0]["datasets"][0]["path"]]
    return node[_only([name for name, _ in node.arrays()], path)]


def _only(names: Sequence[str], path: str) -> str:
    if "image" in names or len(names) == 1:
        return "image" if "image" in names else names[0]
    raise ValueRangeError(
        f"{path} must hold one array, or one named image, got {sorted(names)[:5]}; name a function "
        "that reads it by reader="
    )


def _is_dicom(path: str, suffix: str) -> bool:
    """Whether a file without a known extension begins as DICOM files do."""
    if suffix and not suffix[1:].isdigit():  # names often end in a number, 1.2.840
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextmanager
def _dicom(path: str, channels: int | None) -> Iterator[Image.Image | Raster]:
    pydicom = needed("pydicom", path)
    try:
        dataset = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError as error:
        raise ValueError(str(error)) from error
    if "Rows" not in dataset:
        raise ValueError("a DICOM file must hold an image, got one without")
    values = importlib.import_module("pydicom.pixels").pixel_array(dataset)
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    low = -float(1 << bits - 1) if signed else 0.0
    high = low + float((1 << bits) - 1)
    color = int(dataset.SamplesPerPixel) > 1
    slope = float(getattr(dataset, "RescaleSlope", 1.0))
    intercept = float(getattr(dataset, "RescaleIntercept", 0.0))
    if dataset.PhotometricInterpretation == "MONOCHROME1":  # 0 is white
        values = (low + high - values).astype(np.int32)
    if (slope, intercept) != (1.0, 0.0):
        values = (values * slope + intercept).astype(np.float32)
        low, high = low * slope + intercept, high * slope + intercept
    if bits == 8 and values.dtype == np.uint8:
        yield array_raster(values, channels, axis=2 if color else None)
        return
    yield array_raster(values, channels, (low, high), 2 if color else None)


_Opener = Callable[[str, int | None], AbstractContextManager[Image.Image | Raster]]
_OPENERS: dict[str, _Opener] = {
    **dict.fromkeys((".tif", ".tiff"), _tiff),
    **dict.fromkeys((".npy", ".npz"), _numpy),
    **dict.fromkeys((".h5", ".hdf5"), _hdf5),
    **dict.fromkeys((".dcm", ".dicom"), _dicom),
    ".zarr": _zarr,
}
ARRAY_EXTENSIONS = tuple(e for e in _OPENERS if not e.startswith(".tif"))
