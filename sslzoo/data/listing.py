"""Lists of sample files: one sub-folder per class, or files without labels."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslzoo.random import stratified_split


class Listing(NamedTuple):
    """Sorted sample files and their labels.

    Args:
        paths: N files.
        labels: (N,) int64 positions in `classes`, or None.
        classes: sorted class names; empty without labels.
        groups: (N,) int64 group per file, such as the speaker, or None.
        frame_labels: N arrays with one label per frame (phones), or with one row per segment (first
            sample, sample after the last, label); or None.
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


def spread(count: int, most: int) -> list[int]:
    """At most `most` evenly spaced positions among `count`."""
    if count <= most:
        return list(range(count))
    return [row * (count - 1) // (most - 1) for row in range(most)]


class Found(NamedTuple):
    """Files below a folder.

    Args:
        paths: the sorted files with one of the extensions.
        left_out: the others, without those of the operating system, and repeated folders.
    """

    paths: list[str]
    left_out: list[str]


UNITS = ".units.npz"  # files of `sslzoo units` beside the recordings, which are no samples
_BESIDE = (UNITS, ".phn", ".textgrid", ".alignments.csv", ".alignments.tsv")
_CLUTTER = {".ds_store", "thumbs.db", "desktop.ini"}


def find_files(root: str | Path, extensions: tuple[str, ...]) -> Found:
    """All files below a folder; links are followed, and each folder is visited once.

    Hidden files and folders are left out, as are files of other extensions. A folder `*.zarr` is
    one file.
    """
    found = Found([], [])
    _find(os.fspath(root), extensions, found, set())
    return found


def _find(folder: str, extensions: tuple[str, ...], found: Found, visited: set[object]) -> None:
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"folders must be readable, got {error}") from error
    if (status.st_dev, status.st_ino) in visited:  # a loop of links, or a second link
        found.left_out.append(folder)
        return
    visited.add((status.st_dev, status.st_ino))
    folders = []
    for entry in inside:
        name = entry.name.lower()
        is_folder, hidden = entry.is_dir(), name.startswith(".")
        if is_folder and name.endswith(".zarr") and name.endswith(extensions):
            found.paths.append(entry.path)  # an array is one sample
        elif is_folder and not hidden:
            folders.append(entry.path)
        elif name.endswith(extensions) and not hidden and (entry.is_file() or entry.is_symlink()):
            found.paths.append(entry.path)  # a dangling link is an unreadable sample
        elif name not in _CLUTTER and not name.startswith("._") and not name.endswith(_BESIDE):
            found.left_out.append(entry.path)
    for path in folders:
        _find(path, extensions, found, visited)


def told(extensions: tuple[str, ...]) -> str:
    """The extensions for an error: ".jpg, .png, .tif and 50 others"."""
    first = ", ".join(extensions[:3])
    return f"{first} and {len(extensions) - 3} others" if len(extensions) > 3 else first


def say_left_out(left_out: Sequence[str], extensions: tuple[str, ...]) -> None:
    """Warn about the number of files that are not samples, with a few names."""
    if left_out:
        rank_zero_warn(
            f"{len(left_out)} files are left out, which are hidden, outside the class folders, "
            f"reached twice, or not of {told(extensions)}: {', '.join(left_out[:3])}"
        )


def list_files(root: str | Path, extensions: tuple[str, ...]) -> list[str]:
    """All files below a folder with one of the extensions, sorted; says what is left out."""
    found = find_files(root, extensions)
    say_left_out(found.left_out, extensions)
    return found.paths


def list_unlabeled(root: str | Path, name: str, extensions: tuple[str, ...]) -> Listing:
    """All files below a folder, without labels.

    Raises:
        ValueError: the folder is missing or holds no such file.
    """
    path = check_folder(root, name)
    paths = list_files(path, extensions)
    if not paths:
        raise ValueError(f"{name} {str(path)!r} must hold files of {told(extensions)}, got none")
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
    folders = _class_folders(path, name)
    if not folders:
        raise ValueError(f"{name} {str(path)!r} must hold one sub-folder per class, got none")
    classes = sorted(folders) if classes is None else classes
    check_known(folders, classes, f"{name} {str(path)!r}")
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    left_out = [entry.path for entry in _outside(path)]
    for label, folder in enumerate(classes):
        if folder not in folders:
            continue
        files, others = find_files(path / folders[folder], extensions)
        empty += [] if files else [folder]
        paths += files
        labels += [label] * len(files)
        left_out += others
    say_left_out(left_out, extensions)
    if empty:
        raise ValueError(
            f"every class of {name} {str(path)!r} must hold a file of "
            f"{told(extensions)}, none in: {empty[:5]}"
        )
    return Listing(paths, torch.tensor(labels), list(classes))


def _class_folders(path: Path, name: str) -> dict[str, str]:
    """The names of sub-folders by class: the names in the composed form of Unicode (NFC)."""
    folders: dict[str, str] = {}
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            label = unicodedata.normalize("NFC", entry.name)
            if label in folders:
                raise ValueError(
                    f"{name} {str(path)!r} must have one folder per class, got two Unicode forms "
                    f"of {label!r}; merge them"
                )
            folders[label] = entry.name
    return folders


def _outside(path: Path) -> list[os.DirEntry[str]]:
    """What lies beside the class folders: files, and hidden folders."""
    with os.scandir(path) as entries:
        beside = [e for e in entries if not e.is_dir() or e.name.startswith(".")]
    beside.sort(key=lambda entry: entry.name)
    names = [e.name.lower() for e in beside]
    clutter = [
        name in _CLUTTER or name.startswith("._") or name.endswith(_BESIDE) for name in names
    ]
    return [e for e, is_clutter in zip(beside, clutter, strict=True) if not is_clutter]


def list_folders(
    root: str,
    train_dir: str,
    val_dir: str | None,
    val_fraction: float | None,
    labels: bool,
    extensions: tuple[str, ...],
    more: str = "",
) -> tuple[Listing, Listing | None]:
    """The training and the validation files below a folder.

    Args:
        root: the folder.
        train_dir: training folder inside `root`; without it and a validation, `root` itself.
        val_dir: validation folder inside `root`; None: no validation.
        val_fraction: fraction of each class to hold out for validation, instead of `val_dir`.
        labels: whether sub-folders are classes; False: no validation.
        extensions: of the files.
        more: what else the error proposes.

    Raises:
        ValueError: a folder is missing or empty, or a class is empty or unknown.
    """
    path = check_folder(root, "root")
    inner = path / train_dir
    whole = inner if inner.is_dir() else path
    if not labels:
        return list_unlabeled(whole, "root", extensions), None
    if val_fraction is not None:
        return list_classes(whole, "root", extensions).split(val_fraction)
    if val_dir is None:
        return list_classes(whole, "root", extensions), None
    missing = [name for name in (train_dir, val_dir) if not (path / name).is_dir()]
    if missing:
        raise ValueError(
            f"root {root!r} must hold the folders {[train_dir, val_dir]}, but lacks {missing}; set "
            "train_dir and val_dir, or val_dir=null for no validation, or val_fraction to "
            f"split one folder of classes, or labels=false for files without labels{more}"
        )
    train = list_classes(inner, "the training folder", extensions)
    return train, list_classes(path / val_dir, "the validation folder", extensions, train.classes)


def check_known(names: Iterable[str], classes: Sequence[str], source: str) -> None:
    """Refuse class names of an evaluation set that the training set lacks.

    Raises:
        ValueError: names the unknown classes.
    """
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(f"{source} has classes that training lacks: {unknown[:5]}")
