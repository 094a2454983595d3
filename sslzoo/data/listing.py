"""Listing an image folder: one sub-folder a class, or images without labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class Listing(NamedTuple):
    """The images of a folder, sorted by path.

    Args:
        paths: N files.
        labels: (N,) int64 positions in `classes`, or None.
        classes: names of the classes, sorted; empty without labels.
    """

    paths: list[str]
    labels: Tensor | None
    classes: list[str]


def list_files(root: str | Path, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """All files of a kind under a folder, sorted; hidden files and folders are left out."""
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [
            os.path.join(folder, name)
            for name in sorted(names)
            if name.lower().endswith(extensions) and not name.startswith(".")
        ]
    return found


def check_folder(root: str | Path, what: str) -> Path:
    """The folder as a path.

    Raises:
        ValueError: it does not exist or is a file.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing"
        raise ValueError(f"{what} must be a folder, got {str(root)!r}: there is {got} there")
    return path


def list_classes(
    root: str | Path,
    what: str,
    classes: list[str] | None = None,
    extensions: tuple[str, ...] = EXTENSIONS,
) -> Listing:
    """A folder with one sub-folder a class.

    Args:
        root: the folder.
        what: its name in messages.
        classes: names wanted (those of the training set); by default the sub-folders found.
        extensions: of the files wanted.

    Raises:
        ValueError: the folder is missing or empty, a class has no file, a class is unknown.
    """
    path = check_folder(root, what)
    names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{what} {str(path)!r} must hold one sub-folder a class, it has none")
    unknown = sorted(set(names) - set(classes)) if classes is not None else []
    if unknown:
        raise ValueError(f"{what} {str(path)!r} has classes that training lacks: {unknown[:5]}")
    classes = names if classes is None else classes
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        files = list_files(path / name, extensions) if name in names else []
        empty += [] if files or name not in names else [name]
        paths += files
        labels += [label] * len(files)
    if empty:
        raise ValueError(
            f"every class of {what} {str(path)!r} must hold a file of "
            f"{', '.join(extensions)}, none in: {empty[:5]}"
        )
    return Listing(paths, torch.tensor(labels), list(classes))


def list_unlabeled(root: str | Path, what: str) -> Listing:
    """All images under a folder, without labels.

    Raises:
        ValueError: the folder is missing or holds no image.
    """
    path = check_folder(root, what)
    paths = list_files(path)
    if not paths:
        raise ValueError(
            f"{what} {str(path)!r} must hold images ({', '.join(EXTENSIONS)}), it has none"
        )
    return Listing(paths, None, [])
