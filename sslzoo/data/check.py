"""check_data: what a folder or a list of images holds, and the data module that reads it.

Shapes: C channels of an image.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sslzoo.data.datamodule import default_workers
from sslzoo.data.image.decode import BROKEN
from sslzoo.data.image.file_list import LIST_EXTENSIONS, read_list
from sslzoo.data.image.load import ANY_EXTENSIONS
from sslzoo.data.image.rasters import open_image
from sslzoo.data.listing import check_folder, find_files
from sslzoo.transforms.image.pixels import Decoding, Raster, Reader
from sslzoo.value_range import ValueRange, as_pixels, check_value_range

_ROWS = 1024  # rows of an image that are read at a time
_BITS = (8, 10, 12, 14, 16, 32)  # of the sensors whose values are stored in wider integers
VALIDATION = ("val", "valid", "validation", "dev", "test")
_SIZES = (224, 96, 64, 32)  # of the recipes
_SHOWN = 5  # names of each problem that a report prints


class ImageFacts(NamedTuple):
    """What one image holds.

    Args:
        path: the file.
        size: (height, width).
        kind: mode or channels and type, such as "RGB uint8" or "13 x uint16".
        channels: C.
        dtype: type of the values.
        low: (C,) smallest values.
        high: (C,) largest values.
        total: (C,) sums of the values.
        squares: (C,) sums of their squares.
        digest: hash of the values, size and type.
        known: the range that the file tells (DICOM, TIFF of 12 bits), or None.
    """

    path: str
    size: tuple[int, int]
    kind: str
    channels: int
    dtype: str
    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    digest: str
    known: ValueRange | None


@dataclass
class DataReport:
    """The findings of `check_data`; `str` is the report, `yaml` the section of a config.

    Attributes:
        source: the folder or list.
        counts: images per split and class; the class is "" without labels.
        images: the readable images.
        unreadable: file -> error.
        duplicates: groups of files with equal pixels.
        leaks: groups of these that are in more than one split.
        data: the `data` section of a config, as plain values.
    """

    source: str
    counts: dict[str, dict[str, int]]
    images: list[ImageFacts]
    unreadable: dict[str, str]
    duplicates: list[list[str]] = field(default_factory=list)
    leaks: list[list[str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def yaml(self) -> str:
        """The section `data:` of a config, which `sslzoo fit` reads as it is."""
        import yaml

        return yaml.safe_dump({"data": self.data}, sort_keys=False, default_flow_style=None)

    def __str__(self) -> str:
        return "\n".join([*_report(self), "", self.yaml.rstrip()])


def check_data(
    source: str,
    value_range: Sequence[float] | None = None,
    clip: bool = False,
    reader: Reader | None = None,
    path_column: str = "path",
    label_column: str | None = "label",
    split_column: str | None = "split",
    root: str | None = None,
    num_workers: int | None = None,
) -> DataReport:
    """Read every image of a folder or a list, and derive the data module that reads it.

    Mean and standard deviation are those of pixels in [0, 1], as the views of that data module
    normalize them; they are of the training split.

    Args:
        source: a folder in one of `ImageFolder`'s layouts, or a file of `ImageList`.
        value_range: the values of black and white; None: those that the files tell, or derived
            from the values.
        clip: whether values outside `value_range` are clipped.
        reader: see `ImageFolder`.
        path_column: see `ImageList`.
        label_column: see there.
        split_column: see there.
        root: see there.
        num_workers: threads that read; None: one per core, at most 8.

    Raises:
        ValueError: there is no such folder or list, it has no image, or none is readable.
        ImportError: a format needs a package that is not installed.
    """
    declared = check_value_range(value_range)
    is_list = Path(source).suffix.lower() in LIST_EXTENSIONS
    if is_list:
        columns = path_column, label_column, split_column
        splits, args = _of_list(source, root, columns)
    else:
        splits, args = folder_splits(source, reader)
    files = [(path, split) for split, found in splits.items() for path, _ in found]
    with ThreadPoolExecutor(num_workers or default_workers()) as pool:
        read = list(pool.map(lambda file: _facts(file[0], reader), files))
    images = [x for x in read if isinstance(x, ImageFacts)]
    unreadable = {
        path: x for (path, _), x in zip(files, read, strict=True) if not isinstance(x, ImageFacts)
    }
    if not images:
        first = next(iter(unreadable.items()), ("none", "the folder is empty"))
        raise ValueError(
            f"{source!r} must hold readable images, got {len(files)} files that are not, such as "
            f"{first[0]} ({first[1]})"
        )
    split_of = dict(files)
    groups: dict[str, list[str]] = {}
    for image in images:
        groups.setdefault(image.digest, []).append(image.path)
    duplicates = [paths for paths in groups.values() if len(paths) > 1]
    report = DataReport(
        source,
        {split: dict(Counter(label for _, label in found)) for split, found in splits.items()},
        images,
        unreadable,
        duplicates,
        [paths for paths in duplicates if len({split_of[path] for path in paths}) > 1],
    )
    first_split = next(iter(splits))
    train = [image for image in images if split_of[image.path] == first_split] or images
    args |= _values(train, images, declared, clip)
    held_out = args.get("val_fraction", 0.0)
    args["batch_size"] = fitting_batch_size(int(len(train) * (1 - held_out)))
    if unreadable:
        args["on_broken"] = "skip"
    if reader is not None:
        args["reader"] = f"{reader.__module__}.{reader.__qualname__}"
    kind = "ImageList" if is_list else "ImageFolder"
    report.data = {"class_path": f"sslzoo.data.{kind}", "init_args": args}
    return report


_Split = list[tuple[str, str]]  # (path, class)


def _of_list(
    source: str, root: str | None, columns: tuple[str, str | None, str | None]
) -> tuple[dict[str, _Split], dict[str, Any]]:
    parts = read_list(source, root, *columns)
    names = sorted(parts, key=lambda name: (name not in (None, "train"), str(name)))
    args: dict[str, Any] = {"file": source}
    args |= {} if root is None else {"root": root}
    usual = ("path", "label", "split")
    for kind, column in zip(usual, columns, strict=True):
        args |= {} if column == kind else {f"{kind}_column": column}
    if None not in parts:
        val = next((x for x in VALIDATION if x in parts), None)
        rest = [name for name in names if name not in ("train", val)]
        args["train_split"] = "train" if "train" in parts else rest[0]
        args["val_split"] = val
        names.sort(key=lambda name: name != args["train_split"])
    found: dict[str, _Split] = {}
    for name in names:
        part = parts[name]
        labels = [""] * len(part.paths)
        if part.labels is not None:
            labels = [part.classes[i] for i in part.labels.tolist()]
        found[name or "all"] = list(zip(part.paths, labels, strict=True))
    return found, args


def folder_splits(
    source: str, reader: Reader | None
) -> tuple[dict[str, list[tuple[str, str]]], dict[str, Any]]:
    """The (file, class) of each split of a folder, and the arguments of `ImageFolder` for it.

    The class is "" without labels, and the split "all" without splits. Files beside the folders of
    splits are in the split "outside".

    Args:
        source: a folder in one of `ImageFolder`'s layouts.
        reader: see there.
    """
    root = check_folder(source, "the folder")
    extensions = ANY_EXTENSIONS if reader is None else ("",)
    paths = [Path(path) for path in find_files(root, extensions).paths]
    parts = [path.relative_to(root).parts for path in paths]
    tops = {part[0] for part in parts if len(part) > 1}
    val = next((name for name in VALIDATION if name in tops), None)
    args: dict[str, Any] = {"root": source}
    if "train" in tops:
        depth = [part for part in parts if part[0] == "train"]
        labeled = all(len(part) > 2 for part in depth)
        found: dict[str, _Split] = {"train": []}
        for path, part in zip(paths, parts, strict=True):
            label = part[1] if labeled and len(part) > 2 else ""
            found.setdefault(part[0] if len(part) > 1 else "outside", []).append((str(path), label))
        args |= {"labels": True, "val_dir": val} if labeled else {"labels": False}
        return found, args
    labeled = bool(parts) and all(len(part) > 1 for part in parts) and len(tops) > 1
    whole = [
        (str(path), part[0] if labeled else "") for path, part in zip(paths, parts, strict=True)
    ]
    fewest = min(Counter(label for _, label in whole).values(), default=0)
    if labeled and fewest >= 2:
        args |= {"labels": True, "val_fraction": 0.1 if fewest >= 10 else 0.5}
    elif labeled:
        args |= {"labels": True, "val_dir": None}
    else:
        args["labels"] = False
    return {"all": whole}, args


def _facts(path: str, reader: Reader | None) -> ImageFacts | str:
    try:
        with open_image(path, None, reader) as image:
            return _measure(path, image)
    except BROKEN as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _measure(path: str, image: Image.Image | Raster) -> ImageFacts:
    if isinstance(image, Raster):
        channels, height, width = image.shape
        parts: Iterable[np.ndarray] = (
            image.read(top, 0, min(_ROWS, height - top), width) for top in range(0, height, _ROWS)
        )
        kind, known = "", image.value_range
    else:
        deep = image.mode.startswith("I") or image.mode == "F"
        array = np.array(image)[None] if deep else Decoding(None)(image).numpy()
        channels, height, width = array.shape
        kind, known, parts = image.mode, None, [array]
    digest = hashlib.blake2b(f"{channels} {height} {width}".encode(), digest_size=16)
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    total, squares = np.zeros(channels), np.zeros(channels)
    dtype = ""
    for part in parts:
        digest.update(f"{part.dtype}".encode() + np.ascontiguousarray(part).tobytes())
        dtype = part.dtype.newbyteorder("=").name
        flat = part.reshape(channels, -1).astype(np.float64)
        if not np.isfinite(flat).all():
            raise ValueError("the values must be finite, got NaN or infinity")
        low, high = np.minimum(low, flat.min(1)), np.maximum(high, flat.max(1))
        total, squares = total + flat.sum(1), squares + np.square(flat).sum(1)
    kind = f"{kind} {dtype}" if kind else f"{channels} x {dtype}"
    return ImageFacts(
        *(path, (height, width), kind, channels, dtype, low, high, total, squares),
        *(digest.hexdigest(), known),
    )


def _values(
    train: list[ImageFacts], images: list[ImageFacts], declared: ValueRange | None, clip: bool
) -> dict[str, Any]:
    """Arguments that follow from the values: channels, range, transform."""
    photos = all(image.dtype in ("uint8", "bool") for image in images)
    args = fitting_arguments(
        [min(image.size) for image in images], [image.channels for image in train], photos
    )
    channels, views = args["channels"], args.pop("transform")
    same = [image for image in train if image.channels == channels] or train
    found = declared or _range(images)
    if found is not None:
        args["value_range"] = [_plain(end) for end in found]
        args |= {"clip": True} if clip else {}
    known = found or same[0].known or _of_type(same[0].dtype)
    mean, std = _moments(same)
    width = known[1] - known[0]
    mean, std = (mean - known[0]) / width, np.maximum(std / width, 1e-4)
    if len(mean) != channels:  # no image of that many channels: gray ones are repeated
        mean, std = mean[:1].repeat(channels), std[:1].repeat(channels)
    normalized = {key: [round(float(x), 4) for x in v] for key, v in (("mean", mean), ("std", std))}
    views["init_args"] |= normalized
    return {**args, "transform": views}


def fitting_arguments(
    shorter: Sequence[int], channels: Sequence[int], photos: bool
) -> dict[str, Any]:
    """Arguments `channels` and `transform` of a data module for images.

    Args:
        shorter: the shorter side of each image, in pixels.
        channels: number of channels of each image.
        photos: whether all have at most 8 bits per channel.
    """
    counts = Counter(channels)
    most = counts.most_common(1)[0][0]
    if photos and set(counts) <= {1, 3, 4} and max(counts) > 1:
        most = 3  # photographs, of which some are gray or have an alpha channel
    size = fitting_size(shorter)
    in_color = most == 3 and photos
    views: dict[str, Any] = {"size": size} if in_color else {"sizes": [size]}
    name = "simclr_views" if in_color else "channel_views"
    transform = {"class_path": f"sslzoo.transforms.{name}", "init_args": views}
    return {"channels": most, "transform": transform}


def fitting_size(shorter: Sequence[int]) -> int:
    """The largest size of a recipe that half of the images have, by their shorter sides."""
    side = int(np.median(shorter))
    return next((size for size in _SIZES if size <= side), side)


def fitting_batch_size(num_images: int) -> int:
    """The largest power of 2, at most 256, that the images fill."""
    return min(256, 1 << int(math.log2(max(num_images, 1))))


def _moments(images: list[ImageFacts]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) of the stored values of images of C channels."""
    pixels = sum(image.size[0] * image.size[1] for image in images)
    mean = np.sum([image.total for image in images], 0) / pixels
    square = np.sum([image.squares for image in images], 0) / pixels
    return mean, np.sqrt(np.maximum(square - mean * mean, 0))


def _of_type(dtype: str) -> ValueRange:
    return {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}.get(dtype, (0.0, 1.0))


def _range(images: list[ImageFacts]) -> ValueRange | None:
    """The range to declare; None if the values have that of their type, or the files tell it."""
    if all(image.known is not None for image in images):
        return None
    low = min(float(image.low.min()) for image in images)
    high = max(float(image.high.max()) for image in images)
    kinds = {image.dtype for image in images}
    if kinds <= {"uint8", "bool"}:
        return None
    if kinds <= {"uint8", "uint16"} and low >= 0:
        bits = next(bits for bits in _BITS if high < 1 << bits)
        return None if bits == 16 else (0.0, float((1 << bits) - 1))
    if any(kind.startswith("float") for kind in kinds):
        try:
            as_pixels(torch.tensor([low, high]))
            return None
        except ValueError:
            return low, high if high > low else low + 1
    if low >= 0:
        bits = next((bits for bits in _BITS if high < 1 << bits), 64)
        return 0.0, float((1 << bits) - 1)
    return low, high if high > low else low + 1


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else float(number)


def _report(report: DataReport) -> list[str]:
    images, lines = report.images, []
    total = sum(sum(classes.values()) for classes in report.counts.values())
    lines.append(f"{report.source}: {total} files, {len(images)} readable images")
    for split, classes in report.counts.items():
        labels = {name: count for name, count in sorted(classes.items()) if name}
        told = f", {len(labels)} classes: {_some(labels)}" if labels else ", no classes"
        lines.append(f"  {split}: {sum(classes.values())} images{told}")
    kinds = Counter(image.kind for image in images)
    lines.append(f"kinds: {_some(dict(kinds.most_common()))}")
    sides = np.array([image.size for image in images])
    least, most = sides.min(0), sides.max(0)
    sizes = Counter(f"{h} x {w}" for h, w in sides.tolist())
    lines.append(
        f"sizes (height x width): {_some(dict(sizes.most_common()))}"
        if len(sizes) <= _SHOWN
        else f"sizes (height x width): {len(sizes)} different, from {least[0]} x {least[1]} to "
        f"{most[0]} x {most[1]}"
    )
    for channels in sorted({image.channels for image in images}):
        same = [image for image in images if image.channels == channels]
        low = np.min([image.low for image in same], 0)
        high = np.max([image.high for image in same], 0)
        mean, std = _moments(same)
        lines.append(f"values of the {len(same)} images of {channels} channels, as stored:")
        lines.append("  channel          min          max         mean          std")
        for number, row in enumerate(zip(low, high, mean, std, strict=True)):
            lines.append(f"  {number:7d} " + " ".join(f"{value:12.6g}" for value in row))
    told_ranges = {image.known for image in images} - {None}
    if told_ranges:
        lines.append(f"ranges that the files tell: {sorted(told_ranges)[:_SHOWN]}")  # type: ignore[type-var]
    lines.append(f"unreadable files: {len(report.unreadable)}")
    lines += [f"  {path}: {error}" for path, error in list(report.unreadable.items())[:_SHOWN]]
    lines.append(f"groups of equal images: {len(report.duplicates)}")
    lines += [f"  {' = '.join(paths[:_SHOWN])}" for paths in report.duplicates[:_SHOWN]]
    if report.leaks:
        lines.append(f"of these, in more than one split: {len(report.leaks)}")
        lines += [f"  {' = '.join(paths[:_SHOWN])}" for paths in report.leaks[:_SHOWN]]
    return lines


def _some(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[: 2 * _SHOWN]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} others" if more > 0 else "")
