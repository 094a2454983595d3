"""ImageList: the images of a CSV, Parquet or text file of paths."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info

from sslzoo.checks import check_at_least, check_choice, check_interval
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.load import Decode, load_images
from sslzoo.data.listing import Listing, check_known, spread
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding, Reader
from sslzoo.transforms.image.views import Views
from sslzoo.value_range import check_value_range

LIST_EXTENSIONS = (".csv", ".tsv", ".parquet", ".txt", ".lst")
SEPARATORS = "columns are separated by a comma in .csv and by a tab in .tsv"
_SAMPLE = 1024  # paths whose existence is checked before training


class ImageList(ImageDataModule):
    """Images of a list: a CSV, TSV or Parquet table, or a text file with one path per line.

    The table has a column of paths, and may have columns of labels and of splits. For the other
    arguments see `ImageFolder`.

    Args:
        file: the list: .csv, .tsv, .parquet (which needs pyarrow), .txt or .lst.
        root: folder of relative paths; None: that of the list.
        path_column: the column of paths.
        label_column: the column of classes, text or numbers; None: no labels. A table without it
            has no labels if it is "label".
        split_column: the column of splits; None: all rows are for training. A table without it has
            one split if it is "split".
        train_split: name of the training rows.
        val_split: name of the validation rows; None: no validation.
        val_fraction: fraction of each class to hold out for validation, instead of `val_split`.
    """

    def __init__(
        self,
        file: str,
        transform: Views,
        batch_size: int = 256,
        root: str | None = None,
        path_column: str = "path",
        label_column: str | None = "label",
        split_column: str | None = "split",
        train_split: str = "train",
        val_split: str | None = "val",
        val_fraction: float | None = None,
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        channels: int | None = 3,
        value_range: tuple[float, float] | None = None,
        clip: bool = False,
        reader: Reader | None = None,
        tile: int | None = None,
    ) -> None:
        check_at_least("channels", 1 if channels is None else channels, 1)
        check_at_least("tile", 1 if tile is None else tile, 1)
        check_choice("decode", decode, get_args(Decode))
        check_choice("on_broken", on_broken, get_args(OnBroken))
        if val_fraction is not None:
            check_interval("val_fraction", val_fraction, 0, 1, "()")
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.file, self.root = file, root
        self.columns = path_column, label_column, split_column
        self.splits = train_split, val_split
        self.val_fraction = val_fraction
        self.decode: Decode = decode
        self.on_broken: OnBroken = on_broken
        self.value_range, self.clip = check_value_range(value_range), clip
        self.decoding = Decoding(channels, self.value_range, clip=clip, reader=reader)
        self.tile = tile
        self.classes: list[str] = []

    def read(self) -> ImageSets:
        """Read the list, check a sample of its paths, and decode if `decode` says so."""
        parts = read_list(self.file, self.root, *self.columns, skip=self.on_broken == "skip")
        train, query = train_and_query(parts, self.file, *self.splits, self.val_fraction)
        self.classes = list(train.classes)
        return load_images(*(train, query, self.decode, self.on_broken, self.decoding, self.tile))


def train_and_query(
    parts: dict[str | None, Listing],
    file: str,
    train_split: str,
    val_split: str | None,
    val_fraction: float | None,
) -> tuple[Listing, Listing | None]:
    """The training and the validation files of a list.

    Args:
        parts: see `read_list`.
        file: the list, for errors.
        train_split: see `ImageList`.
        val_split: see there.
        val_fraction: see there.

    Raises:
        ValueError: there is no such split, or validation has classes that training lacks.
    """
    if None in parts:
        train, query = parts[None], None
    elif train_split not in parts:
        raise ValueError(
            f"train_split must be one of the splits {sorted(map(str, parts))} of {file}, got "
            f"{train_split!r}"
        )
    else:
        counts = {split: len(found.paths) for split, found in parts.items()}
        say_splits(counts, (train_split, val_split), file)
        train, query = parts[train_split], parts.get(val_split)
        if val_split is not None and query is None and val_fraction is None:
            raise ValueError(
                f"val_split must be one of the splits {sorted(map(str, parts))} of {file}, got "
                f"{val_split!r}; set val_split=null for no validation"
            )
    if val_fraction is not None:
        train, query = train.split(val_fraction)
    if query is not None and train.labels is not None and query.labels is not None:
        known = {train.classes[int(label)] for label in train.labels.unique()}
        used = {query.classes[int(label)] for label in query.labels.unique()}
        check_known(used, sorted(known), f"the split {val_split!r} of {file}")
    return train, query


def read_list(
    file: str,
    root: str | None = None,
    path_column: str = "path",
    label_column: str | None = "label",
    split_column: str | None = "split",
    group_column: str | None = None,
    skip: bool = False,
) -> dict[str | None, Listing]:
    """The files of a list per split; one split None if it has no column of splits.

    Args:
        file: see `ImageList`.
        root: see there.
        path_column: see there.
        label_column: see there.
        split_column: see there.
        group_column: the column of groups, such as speakers; None: no groups.
        skip: whether some files may be missing, which are unreadable later.

    Raises:
        ValueError: the list or a column is missing, a row is incomplete, or a file of a sample
            does not exist, or none with `skip`.
    """
    path = Path(file).expanduser()
    if not path.is_file() or path.suffix.lower() not in LIST_EXTENSIONS:
        raise ValueError(
            f"a list must be an existing file of {', '.join(LIST_EXTENSIONS)}, got {file!r}"
        )
    table = read_table(path, path_column)
    if path_column not in table:
        raise ValueError(
            f"path_column must be one of the columns {sorted(table)} of {file}, got "
            f"{path_column!r}; {SEPARATORS}"
        )
    labels = column(table, label_column, "label", file)
    splits = column(table, split_column, "split", file)
    groups = column(table, group_column, "group", file)
    folder = path.parent if root is None else Path(root).expanduser()
    given = [str(name) for name in table[path_column]]
    paths = [os.path.join(folder, name) for name in given]
    if not paths:
        raise ValueError(f"a list must have rows, got none in {file}")
    seen = spread(len(paths), _SAMPLE)
    missing = [row for row in seen if not given[row].strip() or not os.path.exists(paths[row])]
    if missing and (not skip or len(missing) == len(seen)):
        raise ValueError(
            f"the paths of a list must be of existing files, got {given[missing[0]]!r} in {file} "
            f"(row {missing[0] + 1}); set root to the folder of relative paths"
        )
    numbers, classes = _numbered(labels)
    whole = Listing(paths, numbers, classes, _numbered(groups)[0])
    if splits is None:
        return {None: whole}
    rows: dict[str | None, list[int]] = {}
    for row, split in enumerate(splits):
        rows.setdefault(str(split), []).append(row)
    return {split: whole.take(torch.tensor(chosen)) for split, chosen in rows.items()}


def _numbered(values: Sequence[Any] | None) -> tuple[torch.Tensor | None, list[str]]:
    """The values as numbers (N,) int64, and their names."""
    if values is None:
        return None, []
    names = sorted(set(values), key=in_order)
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[name] for name in values]), [str(name) for name in names]


def read_table(path: Path, path_column: str) -> dict[str, Sequence[Any]]:
    """The columns of a table by name; the lines of a text file are the column of paths.

    The fields of a .csv may be quoted; in a .tsv, a quote mark is a character as any other.

    Raises:
        ValueError: it is not UTF-8, two columns have one name, or a row has another number of
            columns than the first.
        ImportError: it is a Parquet file, and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise ImportError(
                f"reading {path} needs pyarrow, which is not installed; run pip install pyarrow, "
                "or use a .csv file"
            ) from None
        try:
            return parquet.read_table(path).to_pydict()
        except (OSError, ValueError) as error:  # pyarrow's errors are of these
            raise ValueError(
                f"a table must be a whole Parquet file whose columns have different names, got "
                f"{str(error).splitlines()[0]} in {path}"
            ) from None
    try:
        with open(path, encoding="utf-8-sig", newline="") as text:
            if suffix in (".txt", ".lst"):
                return {path_column: [line.rstrip("\r\n") for line in text if line.strip()]}
            return _read_rows(text, path, suffix == ".tsv")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a table must be UTF-8, got {error.reason} in line {_undecodable(path)} of {path}"
        ) from None


def _read_rows(text: Iterable[str], path: Path, tabs: bool) -> dict[str, Sequence[Any]]:
    quoting: Any = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    rows = csv.DictReader(text, delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
    try:
        names = list(rows.fieldnames or [])
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"columns must have different names, got {twice[0]!r} twice in {path}")
        table: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(
                    f"rows must have {len(table)} columns, got another number in line "
                    f"{rows.line_num} of {path}; {SEPARATORS}"
                )
            for name in table:
                table[name].append(row[name])
    except csv.Error as error:
        raise ValueError(
            f"rows must be those of a table, got {error} in line {rows.line_num + 1} of {path}"
        ) from None
    return dict(table)


def _undecodable(path: Path) -> int:
    """The number of the first line that is not UTF-8."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def column(
    table: dict[str, Sequence[Any]], name: str | None, usual: str, file: str
) -> Sequence[Any] | None:
    """A column of a table, or None: without a name, without values, or without the usual name.

    Raises:
        ValueError: the column is missing, or some of its values are.
    """
    if name is None or (name == usual and name not in table):
        return None
    if name not in table:
        raise ValueError(
            f"{usual}_column must be one of the columns {sorted(table)} of {file}, got {name!r}"
        )
    # A missing number of Parquet may be a NaN, which is not itself.
    none = [value in (None, "") or value != value for value in table[name]]
    missing = [row for row, is_none in enumerate(none) if is_none]
    if len(missing) == len(table[name]):
        return None
    if missing:
        raise ValueError(
            f"every row of the column {name!r} of {file} must have a value, but row "
            f"{missing[0] + 1} has none"
        )
    return table[name]


def say_splits(counts: Mapping[str | None, int], used: tuple[str, str | None], file: str) -> None:
    """Say which splits of a table are left out, with their number of rows."""
    others = {split: count for split, count in counts.items() if split not in used}
    if others:
        told = ", ".join(f"{split!r} ({count})" for split, count in others.items())
        rank_zero_info(f"Left out: the rows of the splits {told} of {file}")


def in_order(value: Any) -> tuple[int, float, str]:
    """Numbers by value, also as text, before names."""
    try:
        return 0, float(value), str(value)
    except (TypeError, ValueError):
        return 1, 0.0, str(value)
