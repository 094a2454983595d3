"""Parquet shards: a column of images, and maybe one of labels; row groups are read whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np

from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.shards import Fields, Recent, Sample, Shards, library
from sslzoo.eval.fingerprint import files_digest


class ParquetShards(Shards):
    """Parquet files, local or by address.

    The image is a column of bytes, of Hugging Face's structs of bytes and path, or of lists of
    pixels. A process keeps the row groups that hold the samples of `recent`, so memory is their
    bytes: files should have row groups of about 100 images.

    Args:
        names: the files or addresses.
        columns: the columns to read.
        groups: row groups of each file as their numbers of rows.
        sizes: bytes of each file's row groups.
        cache: downloads addresses.
        recent: see `Shards.again`.
    """

    def __init__(
        self,
        names: Sequence[str],
        columns: Fields,
        groups: list[list[int]],
        sizes: list[int],
        cache: ShardCache,
        recent: int = 1,
    ) -> None:
        super().__init__(names, [sum(each) for each in groups])
        self.columns, self.groups, self.sizes, self.cache = columns, groups, sizes, cache
        self.is_remote = any(map(cache.is_remote, names))
        self._files: Recent[Any] = Recent(8)
        self._tables: Recent[Any] = Recent(recent + 2 * max(chain(*groups), default=0), len)

    def again(self, recent: int) -> ParquetShards:
        given = self.names, self.columns, self.groups, self.sizes, self.cache
        other = ParquetShards(*given, recent)
        other.classes = self.classes
        return other

    def file_sizes(self) -> list[int]:
        return self.sizes

    def blocks(self, shard: int) -> Sequence[int]:
        return self.groups[shard]

    def read(self, shard: int, offset: int) -> Sample:
        group = 0
        while offset >= self.groups[shard][group]:
            offset -= self.groups[shard][group]
            group += 1
        table = self._tables.get((shard, group), lambda: self._read(shard, group))
        image, label, caption = self.columns
        kind, stored = table.schema.field(image).type, table[image][offset]
        if hasattr(kind, "storage_type"):  # of pixels, such as Hugging Face's Array3D
            kind, stored = kind.storage_type, stored.value
        found = None if stored is None else stored.as_py()
        found = found.get("bytes") if isinstance(found, Mapping) else found
        if found is None or isinstance(found, str):
            got = "none" if found is None else f"the text {found[:60]!r}"
            raise ValueError(f"the column {image!r} must hold the bytes of an image, got {got}")
        if isinstance(found, list):
            while hasattr(kind, "value_type"):
                kind = kind.value_type
            try:
                found = np.asarray(found, kind.to_pandas_dtype())
            except TypeError:
                raise ValueError(f"the column {image!r} must hold pixels, got a null") from None
        told, text = (None if c is None else table[c][offset].as_py() for c in (label, caption))
        if label is not None and told is None:
            raise ValueError(f"the column {label!r} must hold a label, got none")
        return Sample(found, told, text)

    def fetch(self, shards: Sequence[int]) -> None:
        for shard in shards:
            self.cache.path(self.names[shard])

    def _read(self, shard: int, group: int) -> Any:
        parquet = library("pyarrow.parquet", self.names[shard])

        def opened_file() -> Any:
            with self.cache.held(self.names[shard]) as path:
                file = parquet.ParquetFile(path, page_checksum_verification=True)
            if (found := row_groups(file.metadata)) != self.groups[shard]:
                raise ValueError(
                    f"the row groups must be {self.groups[shard]} as when the run started, got "
                    f"{found}"
                )
            return file

        columns = list({column for column in self.columns if column is not None})
        file = self._files.get(shard, opened_file)
        return file.read_row_group(group, columns, use_threads=False)

    def fingerprint(self) -> str | None:
        own = "" if self.is_remote else files_digest(self.names)
        return f"{own}{self.columns}{super().fingerprint()}"


def parquet_shards(
    names: Sequence[str],
    image_key: str | None,
    label_key: str | None,
    cache: ShardCache,
    skip: bool = False,
    caption_key: str | None = None,
) -> tuple[ParquetShards, list[str]]:
    """Open Parquet files: the footers tell counts, columns and, of Hugging Face's, classes.

    Args:
        names: the files or addresses.
        image_key: column of images; None: "image".
        label_key: column of labels; None: no labels; "auto": "label" if there is one.
        cache: downloads addresses.
        skip: leave out files that cannot be read.
        caption_key: column of captions; None: no captions.

    Returns:
        The shards, and the files that are left out.

    Raises:
        ValueError: a file is truncated or no Parquet file, or it lacks a column.
    """
    parquet = library("pyarrow.parquet", names[0])
    kept: list[str] = []
    left_out: list[str] = []
    groups: list[list[int]] = []
    sizes: list[int] = []
    columns: Fields | None = None
    classes: Sequence[str] | None = None
    for name in names:
        footer, problem = _footer(parquet, name, cache)
        if footer is None:
            if not skip:
                raise ValueError(f"the shard {name} must be a whole Parquet file, got {problem}")
            left_out.append(name)
            continue
        schema, meta = footer.schema_arrow, footer.metadata
        given = _columns(schema.names, (image_key, label_key, caption_key), name)
        columns = columns or given
        if columns != given:
            raise ValueError(
                f"all shards must have the columns {tuple(columns)}, got {tuple(given)} in {name}"
            )
        own = _classes(schema.metadata or {}, columns.label)
        classes = classes or own
        if own is not None and own != classes:
            raise ValueError(
                f"all shards must have the classes {list(classes or ())[:5]}, in this order, "
                f"got {own[:5]} in {name}"
            )
        kept.append(name)
        groups.append(row_groups(meta))
        sizes.append(sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)))
    if columns is None:
        raise ValueError(f"shards must be readable, got none of {len(names)}: {left_out[:3]}")
    shards = ParquetShards(kept, columns, groups, sizes, cache)
    shards.classes = classes
    return shards, left_out


def _footer(parquet: Any, name: str, cache: ShardCache) -> tuple[Any, Exception | None]:
    """A Parquet file's footer; None, and why, if the file is broken."""
    pyarrow = library("pyarrow", name)
    with _seekable(name, cache) as source:
        try:
            footer = parquet.ParquetFile(source)
            row_groups(footer.metadata)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            if cache.is_remote(name) and isinstance(error, OSError) and type(error) is not OSError:
                raise  # of the network; pyarrow raises OSError itself
            return None, error
    return footer, None


@contextmanager
def _seekable(name: str, cache: ShardCache) -> Iterator[Any]:
    """A local file, or one of an address; downloaded if its server sends only the whole of it."""
    if not cache.is_remote(name):
        yield name
        return
    with cache.opened(name) as file:
        try:
            file.seek(0, os.SEEK_END)
        except ValueError:
            pass
        else:
            yield file
            return
    with cache.held(name) as path:
        yield path


def row_groups(footer: Any) -> list[int]:
    """Rows of each row group.

    Raises:
        ValueError: the file says that it has more or fewer in all.
    """
    rows = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    if sum(rows) != footer.num_rows or min(rows, default=0) < 0:
        raise ValueError(f"row groups of {rows} rows, and {footer.num_rows} in all")
    return rows


def _columns(
    found: Sequence[str], keys: tuple[str | None, str | None, str | None], name: str
) -> Fields:
    image, label, caption = keys
    if label == "auto":
        label = "label" if "label" in found else None
    columns = Fields(image or "image", label, caption)
    missing = [key for key in columns if key is not None and key not in found]
    if missing:
        names = f"image_key{'' if caption is None else ', text_key'} and label_key"
        raise ValueError(
            f"{names} must be among the columns {list(found)} of {name}, got {missing[0]!r}"
        )
    return columns


def _classes(metadata: Mapping[bytes, bytes], label: str | None) -> list[str] | None:
    """Names of the classes in the metadata that Hugging Face's datasets writes."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return list(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None
