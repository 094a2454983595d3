"""Lists of sample files: one sub-folder per class, or files without labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslzoo.random import stratified_split


class Listing(NamedTuple):
    """Sorted sample files and their labels.

    Args:
        paths: N files.
        labels: (N,) int64 positions in `classes`, or None.
        classes: sorted class names; empty without labels.
        groups: (N,) int64 group per file, such as the speaker, or None.
        frame_labels: N arrays with one label per frame (phones), or None.
    """

    paths: list[str]
    labels: Tensor | None = None
    classes: Sequence[str] = ()
    groups: Tensor | None = None
    frame_labels: list[np.ndarray] | None = None

    def take(self, rows: Tensor) -> Listing:
        """The files at `rows`, (M,) int64."""
        chosen = rows.tolist()
        return Listing(
            [self.paths[i] for i in chosen],
            select_rows(self.labels, rows),
            self.classes,
            select_rows(self.groups, rows),
            None if self.frame_labels is None else [self.frame_labels[i] for i in chosen],
        )

    def split(self, fraction: float) -> tuple[Listing, Listing]:
        """Split off a stratified `fraction` of each class, the same for every run seed."""
        first, second = stratified_split(self.labels, len(self.paths), fraction)
        return self.take(first), self.take(second)


def select_rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    """`values[rows]`, or None without values."""
    return None if values is None else values[rows]


def pack_paths(paths: Iterable[str]) -> np.ndarray:
    """Pack paths in one array, since every forked worker copies a list of str."""
    return np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)


def unpack_path(packed: np.bytes_) -> str:
    """One path of `pack_paths`."""
    return os.fsdecode(bytes(packed))


def check_folder(root: str | Path, name: str) -> Path:
    """The folder as a path.

    Raises:
        ValueError: it does not exist or is a file.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"{name} must be a folder, got {str(root)!r}, which {problem}")
    return path


def list_files(root: str | Path, extensions: tuple[str, ...]) -> list[str]:
    """All files below a folder with one of the extensions, sorted, without hidden ones."""
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [
            os.path.join(folder, name)
            for name in sorted(names)
            if name.lower().endswith(extensions) and not name.startswith(".")
        ]
    return found


def list_unlabeled(root: str | Path, name: str, extensions: tuple[str, ...]) -> Listing:
    """All files below a folder, without labels.

    Raises:
        ValueError: the folder is missing or holds no such file.
    """
    path = check_folder(root, name)
    paths = list_files(path, extensions)
    if not paths:
        raise ValueError(
            f"{name} {str(path)!r} must hold files of {', '.join(extensions)}, got none"
        )
    return Listing(paths)


def list_classes(
    root: str | Path,
    name: str,
    extensions: tuple[str, ...],
    classes: Sequence[str] | None = None,
) -> Listing:
    """The files of a folder with one sub-folder per class.

    Args:
        root: the folder.
        name: its name in error messages.
        extensions: of the files.
        classes: the classes of the training set; None: the sub-folders.

    Raises:
        ValueError: the folder is missing or empty, or a class is empty or unknown.
    """
    path = check_folder(root, name)
    folders = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise ValueError(f"{name} {str(path)!r} must hold one sub-folder per class, got none")
    classes = folders if classes is None else classes
    check_known(folders, classes, f"{name} {str(path)!r}")
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for label, folder in enumerate(classes):
        files = list_files(path / folder, extensions) if folder in folders else []
        empty += [] if files or folder not in folders else [folder]
        paths += files
        labels += [label] * len(files)
    if empty:
        raise ValueError(
            f"every class of {name} {str(path)!r} must hold a file of "
            f"{', '.join(extensions)}, none in: {empty[:5]}"
        )
    return Listing(paths, torch.tensor(labels), list(classes))


def check_known(names: Iterable[str], classes: Sequence[str], source: str) -> None:
    """Refuse class names of an evaluation set that the training set lacks.

    Raises:
        ValueError: names the unknown classes.
    """
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(f"{source} has classes that training lacks: {unknown[:5]}")
