"""LitData: chunks that `litdata.optimize` wrote, read by the library."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sslzoo.atomic_write import atomic_write
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.shards import Fields, Recent, Sample, Shards, library
from sslzoo.data.streams.tar import IMAGE_KEYS
from sslzoo.eval.fingerprint import files_digest

# Serializers of LitData that make values of bytes alone; "pickle" and "graph" run code, and others
# give no images or labels.
PLAIN = (
    *("str", "text", "bool", "int", "float", "json", "bytes", "file"),
    *("image", "pil", "jpeg", "jpeg_array", "tifffile"),
    *("numpy", "no_header_numpy", "tensor", "no_header_tensor"),
)


class LitShards(Shards):
    """The chunks of a folder or address with LitData's `index.json`.

    Chunks of an address, and those that are compressed as a whole, are files of the cache, which a
    folder beside them links to: the library reads that. (Its own reader of addresses, 0.2.76,
    cannot read the chunks that it writes, and that of compressed chunks replaces them by others.)

    Args:
        source: the folder or address.
        keys: keys to read of items that are dictionaries; other items are (image, label), or with
            captions (image, caption, label).
        cache: where chunks of an address, and decompressed ones, are kept.
        content: the content of `index.json`; None: it is read.
    """

    def __init__(
        self,
        source: str,
        keys: Fields,
        cache: ShardCache,
        content: Mapping[str, Any] | None = None,
    ) -> None:
        if content is None:
            address = f"{source.rstrip('/')}/index.json"
            is_remote = cache.is_remote(source)
            text = cache.text(address) if is_remote else Path(address).read_text()
            try:
                content = json.loads(text)
                _check_plain(content, source)
            except (LookupError, TypeError, json.JSONDecodeError) as error:
                raise ValueError(
                    f"{address} must be an index of LitData, got {type(error).__name__}: {error}"
                ) from None
        chunks = content["chunks"]
        super().__init__(
            [f"{source.rstrip('/')}/{chunk['filename']}" for chunk in chunks],
            [chunk["chunk_size"] for chunk in chunks],
        )
        self.source, self.keys, self.cache, self.content = source, keys, cache, content
        self.is_remote = cache.is_remote(source)
        told = json.dumps([source if self.is_remote else os.path.abspath(source), content])
        linked = cache.folder / f"litdata-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
        self.compression: str | None = content["config"].get("compression")
        is_framed = content["config"].get("compression_level") in ("batch", "sample")
        # What is in the names of files that are compressed as a whole; None: there are none.
        self._packed = f".{self.compression}" if self.compression and not is_framed else None
        self._links = self.is_remote or self._packed is not None
        self.folder = linked if self._links else Path(source)
        self._set: Recent[Any] = Recent(1)
        self._last: int | None = None  # the shard that the library has open

    def again(self, recent: int) -> LitShards:
        return LitShards(self.source, self.keys, self.cache, self.content)

    def read(self, shard: int, offset: int) -> Sample:
        item = self._item(shard, offset)
        image, label, caption = self.keys
        if isinstance(item, list | tuple):
            names = [image, *([caption] if caption else []), *([label] if label else [])]
            item = dict(zip(names, item, strict=False))
        elif not isinstance(item, Mapping):
            item = {image: item}
        missing = [key for key in self.keys if key is not None and key not in item]
        if missing:
            raise ValueError(f"a sample must have {missing[0]!r}, got {sorted(item)}")
        if label is not None and item[label] is None:
            raise ValueError(f"{label!r} must hold a label, got None")
        told = (None if key is None else item[key] for key in (label, caption))
        return Sample(item[image], *told)

    def file_sizes(self) -> list[int]:
        return [chunk["chunk_bytes"] for chunk in self.content["chunks"]]

    def fetch(self, shards: Sequence[int]) -> None:
        for shard in shards:
            self.cache.path(self.names[shard])

    def _item(self, shard: int, offset: int) -> Any:
        dataset = self._set.get(None, self._opened)
        with ExitStack() as stack:
            if shard != self._last:
                self._last = None
                self._hold_chunk(shard, stack)
            try:
                item = dataset[int(self.starts[shard]) + offset]
            except (ImportError, MemoryError):
                raise
            except Exception as error:  # such as of another number of items, or of zstd
                raise ValueError(
                    f"the chunk must be that of index.json, got {type(error).__name__}: {error}"
                ) from error
        self._last = shard
        return item

    def _hold_chunk(self, shard: int, stack: ExitStack) -> None:
        """Have the chunk where the library looks for it until the stack is left.

        The library waits for a chunk that lacks bytes.

        Raises:
            ValueError: it has fewer bytes than the index says, or cannot be decompressed.
        """
        path = given = stack.enter_context(self.cache.held(self.names[shard]))
        name, wanted = (self.content["chunks"][shard][key] for key in ("filename", "chunk_bytes"))
        if given.is_file() and self._packed is not None and self._packed in name:
            told = given.stat()
            version = "" if self.is_remote else f" {told.st_size} {told.st_mtime_ns}"
            own = f"{given.absolute()}{version}/{self._unpacked(name)}"
            path = stack.enter_context(
                self.cache.made(own, lambda: _decompressed(given, self.source))
            )
        size = path.stat().st_size if path.is_file() else 0
        if size < wanted:
            raise ValueError(f"the chunk must have {wanted} bytes as index.json says, got {size}")
        link = self.folder / self._unpacked(name)
        if self._links and not (link.is_symlink() and link.readlink() == path.absolute()):
            link.unlink(missing_ok=True)
            link.symlink_to(path.absolute())

    def _unpacked(self, name: str) -> str:
        """The name of a chunk's file after it is decompressed."""
        return name if self._packed is None else name.replace(self._packed, "")

    def _opened(self) -> Any:
        litdata = library("litdata", self.source)
        if self.compression is not None:
            _compressor(self.source)
        self._last = None  # such as of the process that this one was copied from
        if self._links:
            config, chunks = self.content["config"], self.content["chunks"]
            index = {
                **self.content,
                "config": config if self._packed is None else {**config, "compression": None},
                "chunks": [
                    {**chunk, "filename": self._unpacked(chunk["filename"])} for chunk in chunks
                ],
            }
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / "index.json", json.dumps(index))
        # The library reads the index once more, which may be another one by then.
        refused = {name: _Refused() for name in ("pickle", "graph")}
        return litdata.StreamingDataset(str(self.folder), serializers=refused)

    def fingerprint(self) -> str | None:
        own = "" if self.is_remote else files_digest(self.names)
        return f"{own}{self.keys}{super().fingerprint()}"


class _Refused:
    """A serializer that reads nothing."""

    def setup(self, metadata: Any) -> None:
        return

    def deserialize(self, data: bytes) -> Any:
        raise ValueError("LitData must hold plain values, got pickled ones, which run code")


def _compressor(source: str) -> Any:
    """LitData's zstd.

    Raises:
        ImportError: the package zstd is not installed.
    """
    compression = library("litdata.streaming.compression", source)
    try:
        return compression.ZSTDCompressor(4)
    except ModuleNotFoundError:
        raise ImportError(
            f"reading {source}, whose chunks are compressed, needs the package zstd, which is not "
            "installed; run pip install 'sslzoo[streams]'"
        ) from None


def _decompressed(path: Path, source: str) -> bytes:
    """The content of a chunk that is compressed as a whole.

    Raises:
        ValueError: it is damaged or cannot be read.
    """
    compressor = _compressor(source)
    try:
        return bytes(compressor.decompress(path.read_bytes()))
    except MemoryError:
        raise
    except Exception as error:  # zstd has errors of its own
        raise ValueError(
            f"the chunk must be compressed by zstd, got {type(error).__name__}: {error}"
        ) from error


def _check_plain(content: Mapping[str, Any], source: str) -> None:
    """Refuse an index by which reading would run code, or write outside of the cache.

    Raises:
        ValueError: it names a serializer that is not in `PLAIN`, another container than a
            dictionary, list or tuple, or chunks in other folders.
    """
    for entry in content["config"]["data_format"]:
        name, *more = str(entry).split(":")
        if name not in PLAIN or any(
            not (each.isdigit() or each in (*PLAIN, *IMAGE_KEYS)) for each in more
        ):
            raise ValueError(
                f"the items of {source} must be plain values, whose data_format is among "
                f"{', '.join(PLAIN)}, got {entry!r}, which may run code when it is read; write "
                "images as bytes and labels as numbers or text"
            )
    compression = content["config"].get("compression")
    if compression is not None and str(compression).partition(":")[0] != "zstd":
        raise ValueError(f"the compression of {source} must be zstd or null, got {compression!r}")
    spec = json.loads(content["config"]["data_spec"] or "[]")
    left = list(spec[1:])
    while left:
        node = left.pop()
        if node["type"] not in (None, "builtins.dict", "builtins.list", "builtins.tuple"):
            raise ValueError(
                f"the items of {source} must be dictionaries, lists or tuples, got {node['type']!r}"
            )
        left += node["children_spec"]
    for chunk in content["chunks"]:
        operator.index(chunk["chunk_size"]), operator.index(chunk["chunk_bytes"])
        if chunk["filename"] != os.path.basename(chunk["filename"]):
            raise ValueError(
                f"the chunks of {source} must lie in it, got {chunk['filename']!r} in its index"
            )


def lit_shards(
    source: str,
    image_key: str | None,
    label_key: str | None,
    cache: ShardCache,
    caption_key: str | None = None,
) -> LitShards:
    """Open a LitData folder.

    Args:
        source: the folder or address.
        image_key: key of the image; None: "image".
        label_key: key of the label; None: no labels; "auto": "label" if the first item has it.
        cache: where chunks of an address, and decompressed ones, are kept.
        caption_key: key of the captions; None: no captions.
    """
    keys = Fields(image_key or "image", label_key, caption_key)
    if label_key != "auto":
        return LitShards(source, keys, cache)
    first = LitShards(source, keys._replace(label=None), cache)
    item = first._item(0, 0)
    before = 1 if caption_key is None else 2
    several = isinstance(item, list | tuple) and len(item) > before
    known = "label" in item if isinstance(item, Mapping) else several
    return LitShards(source, keys._replace(label="label" if known else None), cache, first.content)
