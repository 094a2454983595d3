"""LitData: chunks that `litdata.optimize` wrote, read by the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.shards import Recent, Sample, Shards, library
from sslzoo.eval.fingerprint import files_digest


class LitShards(Shards):
    """The chunks of a folder or address with LitData's `index.json`.

    The library downloads chunks of an address to the cache folder, within its bound.

    Args:
        source: the folder or address.
        keys: keys of the image, and of the label or None, in items that are dictionaries; other
            items are (image, label).
        cache: where chunks of an address are kept.
        content: the content of `index.json`; None: it is read.
    """

    def __init__(
        self,
        source: str,
        keys: tuple[str, str | None],
        cache: ShardCache,
        content: Mapping[str, Any] | None = None,
    ) -> None:
        if content is None:
            address = f"{source.rstrip('/')}/index.json"
            is_remote = cache.is_remote(source)
            content = json.loads(cache.text(address) if is_remote else Path(address).read_text())
        chunks = content["chunks"]
        super().__init__(
            [f"{source.rstrip('/')}/{chunk['filename']}" for chunk in chunks],
            [chunk["chunk_size"] for chunk in chunks],
        )
        self.source, self.keys, self.cache, self.content = source, keys, cache, content
        self.is_remote = cache.is_remote(source)
        self._set: Recent[Any] = Recent(1)

    def again(self, recent: int) -> LitShards:
        return LitShards(self.source, self.keys, self.cache, self.content)

    def read(self, shard: int, offset: int) -> Sample:
        dataset = self._set.get(None, self._opened)
        item = dataset[int(self.starts[shard]) + offset]
        image, label = self.keys
        if isinstance(item, Mapping):
            missing = [key for key in self.keys if key is not None and key not in item]
            if missing:
                raise ValueError(f"a sample must have {missing[0]!r}, got {sorted(item)}")
            return Sample(item[image], None if label is None else item[label])
        if isinstance(item, list | tuple):
            return Sample(item[0], item[1] if label is not None and len(item) > 1 else None)
        return Sample(item, None)

    def file_sizes(self) -> list[int]:
        return [chunk["chunk_bytes"] for chunk in self.content["chunks"]]

    def _opened(self) -> Any:
        litdata = library("litdata", self.source)
        if not self.is_remote:
            return litdata.StreamingDataset(self.source)
        return litdata.StreamingDataset(
            self.source,
            cache_dir=str(self.cache.folder / "litdata"),
            max_cache_size=f"{max(1, round(self.cache.max_gb))}GB",
        )

    def fingerprint(self) -> str | None:
        own = "" if self.is_remote else files_digest(self.names)
        return f"{own}{self.keys}{super().fingerprint()}"


def lit_shards(
    source: str, image_key: str | None, label_key: str | None, cache: ShardCache
) -> LitShards:
    """Open a LitData folder.

    Args:
        source: the folder or address.
        image_key: key of the image; None: "image".
        label_key: key of the label; None: no labels; "auto": "label" if the first item has it.
        cache: where chunks of an address are kept.
    """
    image = image_key or "image"
    if label_key != "auto":
        return LitShards(source, (image, label_key), cache)
    first = LitShards(source, (image, None), cache)
    item = first._set.get(None, first._opened)[0]
    known = "label" in item if isinstance(item, Mapping) else isinstance(item, list | tuple)
    return LitShards(source, (image, "label" if known else None), cache, first.content)
