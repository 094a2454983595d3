"""Image benchmarks in their official folders: PASCAL VOC, Copydays, revisited Oxford and Paris."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.image.decode import broken_error
from sslzoo.data.listing import check_folder
from sslzoo.text_file import read_text


class PathImages:
    """Image files, each cut to a size by a function; one batch must have one size.

    Args:
        paths: N files.
        cut: image -> (C, H, W) pixels; picklable.
    """

    def __init__(self, paths: Sequence[str], cut: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.cut = list(paths), cut

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, index: list[int]) -> Batch:
        return Batch([torch.stack([self._read(self.paths[i]) for i in index])], torch.tensor(index))

    def _read(self, path: str) -> Tensor:
        try:
            with Image.open(path) as image:
                return self.cut(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise broken_error(path, error) from error


class Voc(NamedTuple):
    """A split of PASCAL VOC.

    Args:
        paths: N image files.
        labels: (N, C): 1 present, 0 absent, -1 difficult, which is not counted.
        classes: C names.
    """

    paths: list[str]
    labels: Tensor
    classes: list[str]


def read_voc(root: str | Path, split: str) -> Voc:
    """Read the image labels of `ImageSets/Main/<class>_<split>.txt`.

    Args:
        root: folder with JPEGImages and ImageSets, such as VOCdevkit/VOC2007.
        split: "trainval", "train", "val" or "test".

    Raises:
        ValueError: a folder, list or image is missing, or a line is malformed.
    """
    folder = check_folder(root, "root")
    lists = sorted((folder / "ImageSets" / "Main").glob(f"*_{split}.txt"))
    if not lists:
        raise ValueError(
            f"root must have ImageSets/Main/<class>_{split}.txt, as in VOCdevkit/VOC2007, got none "
            f"in {str(root)!r}"
        )
    classes = [path.name.removesuffix(f"_{split}.txt") for path in lists]
    told: dict[str, list[int]] = {}
    for position, path in enumerate(lists):
        lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
        wrong = [line for line in lines if len(line) != 2 or line[1] not in ("-1", "0", "1")]
        if wrong:
            raise ValueError(f"a line of {path} must be `image -1|0|1`, got {' '.join(wrong[0])!r}")
        for name, value in lines:
            row = told.setdefault(name, [])
            if len(row) != position:
                raise ValueError(
                    f"every list of {split} must name the same images, got {name!r} in {path.name} "
                    f"and {len(row)} of {position} lists before it"
                )
            row.append({"1": 1, "0": -1, "-1": 0}[value])
    short = [name for name, row in told.items() if len(row) != len(classes)]
    if short:
        raise ValueError(
            f"every list of {split} must name the same images, got {short[0]!r} in some"
        )
    paths = [str(folder / "JPEGImages" / f"{name}.jpg") for name in told]
    _check_files(paths)
    return Voc(paths, torch.tensor(list(told.values())), classes)


def _check_files(paths: Sequence[str]) -> None:
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ValueError(
            f"every image that is listed must exist, got {len(missing)} of {len(paths)} missing, "
            f"such as {missing[0]!r}"
        )


COPYDAYS = (
    "original",
    "strong",
    *(f"jpegqual/{quality}" for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75)),
    *(f"crops/{percent}" for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80)),
)


class Copydays(NamedTuple):
    """The blocks of Copydays.

    Args:
        originals: files of the database.
        blocks: per block, its query files.
        positives: per block and query, the positions of its originals.
    """

    originals: list[str]
    blocks: dict[str, list[str]]
    positives: dict[str, list[list[int]]]


def read_copydays(root: str | Path) -> Copydays:
    """Read Copydays' folders `original`, `strong`, `jpegqual/<q>` and `crops/<p>`.

    Queries belong to the originals whose names start with the same four digits (200000.jpg and
    200001.jpg are one scene's original and its first strong copy); other blocks have the
    originals' names. Blocks that are absent are left out.

    Raises:
        ValueError: there are no originals or no other block, or a query has no original.
    """
    folder = check_folder(root, "root")
    files = {
        name: sorted(p for p in (folder / name).iterdir() if p.suffix.lower() == ".jpg")
        for name in COPYDAYS
        if (folder / name).is_dir()
    }
    originals = files.get("original", [])
    if not originals or len(files) < 2:
        raise ValueError(
            "root must have Copydays' folders original and strong, jpegqual/<q> or crops/<p>, got "
            f"{sorted(files)} in {str(root)!r}"
        )
    found = Copydays([str(path) for path in originals], {}, {})
    for block, paths in files.items():
        digits = 4 if block == "strong" else None
        positives = []
        for path in paths:
            own = [i for i, o in enumerate(originals) if o.stem[:digits] == path.stem[:digits]]
            if not own:
                raise ValueError(f"{str(path)!r} must have an original of its name, got none")
            positives.append(own)
        if paths:
            found.blocks[block] = [str(path) for path in paths]
            found.positives[block] = positives
    return found


class Revisited(NamedTuple):
    """Revisited Oxford or Paris.

    Args:
        database: files of the database.
        queries: files of the queries.
        truth: per query, positions of its "easy", "hard" and "junk" images.
        boxes: per query, (left, upper, right, lower) of the object in pixels, or None.
    """

    database: list[str]
    queries: list[str]
    truth: list[dict[str, list[int]]]
    boxes: list[tuple[float, float, float, float] | None]


def check_revisited(folder: Path, content: Any, where: str) -> Revisited:
    """Check the contents of a ground truth file, and list its images in `jpg`.

    Args:
        folder: folder with `jpg`.
        content: `imlist`, `qimlist` and `gnd`, as in gnd_roxford5k.pkl.
        where: the file, for errors.

    Raises:
        ValueError: a key, an image or a query is missing, or a position is outside of the list.
    """
    keys = ("imlist", "qimlist", "gnd")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
        raise ValueError(f"{where} must have lists named {list(keys)}, got another content")
    images, queries = ([str(name) for name in content[key]] for key in ("imlist", "qimlist"))
    odd = [name for name in images + queries if Path(name).name != name]
    if odd:
        raise ValueError(f"{where} must name images without folders, got {odd[0]!r}")
    if len(content["gnd"]) != len(queries):
        raise ValueError(
            f"{where} must have one ground truth per query ({len(queries)}), got "
            f"{len(content['gnd'])}"
        )
    truth, boxes = [], []
    for name, known in zip(queries, content["gnd"], strict=True):
        own = {}
        for kind in ("easy", "hard", "junk"):
            try:
                own[kind] = [int(i) for i in _plain(known[kind])]
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"the ground truth of query {name!r} in {where} must have a list of positions "
                    f"{kind!r}, got another content"
                ) from None
            outside = [i for i in own[kind] if not 0 <= i < len(images)]
            if outside:
                raise ValueError(
                    f"positions in {where} must be in 0..{len(images) - 1}, got {outside[0]} for "
                    f"query {name!r}"
                )
        box = [float(x) for x in _plain(known.get("bbx", []))]
        boxes.append((box[0], box[1], box[2], box[3]) if len(box) == 4 else None)
        truth.append(own)
    listed = [
        [str(folder / "jpg" / f"{name}.jpg") for name in names] for names in (images, queries)
    ]
    for paths in listed:
        _check_files(paths)
    return Revisited(listed[0], listed[1], truth, boxes)


def _plain(values: Any) -> list[Any]:
    """A list of numbers, from a list or an array."""
    numbers = getattr(values, "numbers", values)  # an array of `zoo.safe_read`
    return list(numbers.ravel().tolist() if hasattr(numbers, "ravel") else numbers)
