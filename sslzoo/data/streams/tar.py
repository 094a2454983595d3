"""Tar shards of WebDataset, read by an index of where each sample lies.

A sample is the consecutive members of one key: the path up to the first dot of the file's name.
The library webdataset reads shards forward only, so an index gives the bytes of each sample here:
`x.tar.index.npy` beside `x.tar`, (n, 4) int64 or (n, 6) with captions, or a scan of the headers. A
JSON file lists the shards with their counts, in the form of wids.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslzoo.atomic_write import replacing
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.shards import Recent, Sample, Shards, path_of
from sslzoo.eval.fingerprint import files_digest, text_digest

WIDS = "wids-shard-index-v1"  # the JSON form of webdataset's wids
IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "gif", "tif", "tiff", "jp2", "npy")
_CHUNK = 1 << 20
_OPEN = 64  # tar files that a process keeps open
MISSING, _AMBIGUOUS = -1, -2  # in place of a member's offset


class TarKeys(NamedTuple):
    """Which members of a sample are its image, its label and its captions.

    Attributes:
        image: extensions, of which the first present is the image.
        label: extension of the label, such as "cls", or "json.label" for a field of a JSON
            member; None: no labels.
        caption: that of the captions, such as "txt" or "json.caption"; None: no captions.
    """

    image: tuple[str, ...] = IMAGE_KEYS
    label: str | None = "cls"
    caption: str | None = None

    def columns(self, keys: TarKeys | None) -> list[int] | None:
        """The columns of an index of `keys` that are those of one of ours; None: it lacks some."""
        if keys is None or keys.image != self.image:
            return None
        known = {_member(keys.label): [2, 3]}
        known |= {} if keys.caption is None else {_member(keys.caption): [4, 5]}
        known[None] = [2, 3]  # not read
        wanted = [_member(self.label)] + [_member(self.caption)] * (self.caption is not None)
        if not known.keys() >= {*wanted}:
            return None
        return [0, 1, *(column for member in wanted for column in known[member])]


class BrokenShardError(ValueError):
    """A tar file lacks its end, is damaged, is no tar file, or has ambiguous members.

    Attributes:
        index: (n, 4) or (n, 6) int64, the samples that can be used.
        is_whole: whether these are all of it, and only some of them are broken.
    """

    def __init__(self, message: str, index: np.ndarray, is_whole: bool = False) -> None:
        super().__init__(message)
        self.index, self.is_whole = index, is_whole


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member as WebDataset splits them: at the first dot of the file."""
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def scan_tar(path: str | Path, keys: TarKeys = TarKeys()) -> np.ndarray:  # noqa: B008 (a tuple)
    """Where each sample of a tar file lies, from its headers alone.

    Returns:
        (n, 4) int64: offset and size of the image, then of the label; with captions (n, 6), then of
        these. The offset is negative if it is missing, or if there are two or it is a link.

    Raises:
        BrokenShardError: it is truncated, damaged or no tar file, or a member that is read is
            there twice or a link; compressed files are refused too.
    """
    width = 4 if keys.caption is None else 6
    rows: list[tuple[int, ...]] = []
    ambiguous: list[str] = []
    size = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for name, members in _samples(tar):
                if any(first + length > size for first, length in members.values()):
                    raise tarfile.ReadError("unexpected end of data")
                rows.append(_row(members, keys))
                if _AMBIGUOUS in rows[-1]:
                    ambiguous.append(name)
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, _NoEndError):
            rows = rows[:-1]  # it may lack members
        index = np.array(rows, dtype=np.int64).reshape(-1, width)
        got = "compressed data (decompress it)" if _is_compressed(path) else error
        raise BrokenShardError(
            f"the shard {path} must be a whole, uncompressed tar file, got {got} after "
            f"{len(index)} samples",
            index,
        ) from error
    index = np.array(rows, dtype=np.int64).reshape(-1, width)
    if ambiguous:
        raise BrokenShardError(
            f"a sample of {path} must have one image and one label, as files, got two or a link "
            f"for {len(ambiguous)}, such as {ambiguous[0]!r}",
            index,
            is_whole=True,
        )
    return index


def _is_compressed(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def sample_members(path: str | Path, number: int) -> str:
    """The key and the members of a sample of a tar file, for errors."""
    with tarfile.open(path, "r:") as tar:
        key, members = next(islice(_samples(tar), number, None))
    return f"{key!r} with {', '.join(f'.{extension}' for extension in list(members)[:5])}"


class _NoEndError(tarfile.ReadError):
    """Members may be missing after the last that was read."""


def _check_end(path: str | Path, offset: int) -> None:
    """Check that nothing but zeros, two blocks at least, follow the last member.

    Where `tarfile` meets a truncated or damaged header, it stops as if the file ended there.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        end = file.read(2 * tarfile.BLOCKSIZE)
        if any(end):
            raise _NoEndError(f"a damaged header at byte {offset}")
        if len(end) < 2 * tarfile.BLOCKSIZE:
            raise _NoEndError("no end (two blocks of zeros)")
        while rest := file.read(_CHUNK):
            if any(rest):
                raise tarfile.ReadError(
                    "more data behind the end of the archive, such as of a second one,"
                )


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Each sample's key, and its members: extension -> (offset, size)."""
    key: str | None = None
    members: dict[str, tuple[int, int]] = {}
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # else it keeps every header in memory
        name, extension = split_name(member.name)
        is_link = member.islnk() or member.issym()
        if not (member.isreg() or is_link) or not extension or _is_hidden(member.name):
            continue
        if key is not None and name != key and members:
            yield key, members
            members = {}
        key = name
        plain = extension not in members and not is_link and not member.issparse()
        members[extension] = (member.offset_data, member.size) if plain else (_AMBIGUOUS, 0)
    if key is not None and members:
        yield key, members


def _is_hidden(name: str) -> bool:
    """Whether a member is no part of a sample: macOS's, or WebDataset's own about the shard."""
    folder, _, file = name.rpartition("/")
    about = file.removesuffix(".json")
    is_meta = not folder and about.startswith("__") and about.endswith("__")
    return file.startswith("._") or is_meta or "__MACOSX" in folder.split("/")


def _member(key: str | None) -> str | None:
    """The extension of the member that holds a label or captions."""
    return "json" if key is not None and key.startswith("json.") else key


def _row(members: dict[str, tuple[int, int]], keys: TarKeys) -> tuple[int, ...]:
    image = next((members[k] for k in keys.image if k in members), (MISSING, 0))
    label, caption = (members.get(_member(k) or "", (MISSING, 0)) for k in keys[1:])
    return (*image, *label) if keys.caption is None else (*image, *label, *caption)


def index_path(shard: str) -> str:
    """The path of a shard's index."""
    return f"{shard}.index.npy"


def write_index(shard: Path, index: np.ndarray) -> None:
    """Write a shard's index beside it."""
    with replacing(Path(index_path(str(shard)))) as part, open(part, "wb") as file:
        np.save(file, index)


class ShardList(NamedTuple):
    """What a JSON file says of shards.

    Attributes:
        names: S files or addresses.
        counts: samples per shard.
        sizes: bytes per shard, or None.
        keys: the members that the indices beside the shards are of, or None without these.
        classes: names of the classes, or None.
    """

    names: list[str]
    counts: list[int]
    sizes: list[int] | None = None
    keys: TarKeys | None = None
    classes: list[str] | None = None

    def without(self, shards: Sequence[int]) -> ShardList:
        """The list without some of its shards.

        Raises:
            ValueError: none is left.
        """
        kept = [i for i in range(len(self.names)) if i not in set(shards)]
        if not kept:
            raise ValueError(f"a shard of the list must exist, got none of {self.names[:3]}")
        return self._replace(
            names=[self.names[i] for i in kept],
            counts=[self.counts[i] for i in kept],
            sizes=None if self.sizes is None else [self.sizes[i] for i in kept],
        )


def list_content(shards: ShardList) -> str:
    """The JSON text of a list of shards, which wids reads too."""
    each: list[dict[str, Any]] = [
        {"url": name, "nsamples": count}
        for name, count in zip(shards.names, shards.counts, strict=True)
    ]
    for one, size in zip(each, shards.sizes or (), strict=False):
        one["filesize"] = size
    content: dict[str, Any] = {"__kind__": WIDS, "wids_version": 1, "shardlist": each}
    if shards.keys is not None:
        content["index"] = {"image": list(shards.keys.image), "label": shards.keys.label}
        if shards.keys.caption is not None:
            content["index"]["caption"] = shards.keys.caption
    if shards.classes is not None:
        content["classes"] = shards.classes
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def parse_list(text: str, source: str) -> ShardList:
    """Read the JSON text of `list_content` or of wids.

    Args:
        text: the content.
        source: the file or address, beside which relative names lie.

    Raises:
        ValueError: it is no such list.
    """
    try:
        content = json.loads(text)
        each = content["shardlist"]
        names = [str(shard["url"]) for shard in each]
        counts = [int(shard["nsamples"]) for shard in each]
        known = content.get("index")
        given = None if known is None else (known["label"], known.get("caption"))
        keys = None if given is None else TarKeys(tuple(known["image"]), *given)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{source} must be a JSON list of shards (shardlist of url and nsamples), got "
            f"{type(error).__name__}: {error}"
        ) from None
    folder = path_of(source).rpartition("/")[0]
    near = [name if "://" in name or os.path.isabs(name) or not folder else f"{folder}/{name}"
            for name in names]  # fmt: skip
    sizes = [shard.get("filesize") for shard in each]
    return ShardList(near, counts, None if None in sizes else sizes, keys, content.get("classes"))


class TarShards(Shards):
    """Tar files, local or by address.

    Args:
        shards: the shards with their counts.
        keys: the members to read.
        cache: downloads addresses.
        scanned: the index of each shard that was scanned, see `scan_tar`; None: read beside the
            shard, or scanned when it is opened.

    Raises:
        ValueError: a whole JSON member would be a label or a caption.
    """

    def __init__(
        self,
        shards: ShardList,
        keys: TarKeys,
        cache: ShardCache,
        scanned: Sequence[np.ndarray] | None = None,
    ) -> None:
        for name, key in (("label_key", keys.label), ("text_key", keys.caption)):
            if key == "json":
                raise ValueError(
                    f"{name} must name a field of a JSON member, such as json.caption, got 'json'"
                )
        super().__init__(shards.names, shards.counts)
        self.shards, self.keys, self.cache, self.scanned = shards, keys, cache, scanned
        self.classes = shards.classes
        self.is_remote = any(map(cache.is_remote, self.names))
        self._open: Recent[_TarFile] = Recent(_OPEN)

    def again(self, recent: int) -> TarShards:
        return TarShards(self.shards, self.keys, self.cache, self.scanned)

    def read(self, shard: int, offset: int) -> Sample:
        file = self._open.get(shard, lambda: self._opened(shard))
        if offset >= len(file.index):
            raise ValueError(f"the shard has {len(file.index)} samples, its list says more")
        row = file.index[offset].tolist()
        image = file.part(row[0], row[1], f"an image ({', '.join(self.keys.image)})")
        label = caption = None
        if self.keys.label is not None:
            told = file.part(row[2], row[3], f"a label ({self.keys.label})")
            label = _value(told, self.keys.label)
            if label is None:
                raise ValueError(f"the field {self.keys.label!r} must hold a label, got null")
        if self.keys.caption is not None:
            told = file.part(row[4], row[5], f"a caption ({self.keys.caption})")
            caption = _value(told, self.keys.caption)
        return Sample(image, label, caption)

    def fetch(self, shards: Sequence[int]) -> None:
        for shard in shards:
            self.cache.path(self.names[shard])

    def file_sizes(self) -> Sequence[int] | None:
        if self.shards.sizes is not None or self.is_remote:
            return self.shards.sizes
        return [os.path.getsize(name) for name in self.names]

    def sizes(self) -> np.ndarray | None:
        """Bytes of each image, label and caption, (N, 2) or (N, 3) int64.

        They are -1 if it is missing or cannot be read. None if they are not known before reading:
        of addresses, and of shards without an index.
        """
        known = self.scanned
        if known is None:
            if self.is_remote or self.keys.columns(self.shards.keys) is None:
                return None
            known = [self._near(index_path(name)) for name in self.names]
        rows = np.concatenate([*known]).reshape(len(self), -1, 2)
        return np.where(rows[:, :, 0] < 0, MISSING, rows[:, :, 1])

    def _opened(self, shard: int) -> _TarFile:
        with self.cache.held(self.names[shard]) as path:
            index = None if self.scanned is None else self.scanned[shard]
            index = self._index(shard, path) if index is None else index
            if len(index) > self.counts[shard]:
                raise ValueError(f"the shard has {len(index)} samples, its list says fewer")
            size, known = os.path.getsize(path), self.shards.sizes
            if self.cache.is_remote(self.names[shard]) and known and size != known[shard]:
                raise ValueError(
                    f"the shard must have {known[shard]} bytes as its list says, got {size}"
                )
            return _TarFile(path, index)

    def _index(self, shard: int, path: Path) -> np.ndarray:
        if self.keys.columns(self.shards.keys) is not None:
            with self.cache.held(index_path(self.names[shard])) as near:
                return self._near(near)
        try:
            return scan_tar(path, self.keys)
        except BrokenShardError as error:
            return error.index  # the samples after it are read and refused

    def _near(self, path: str | Path) -> np.ndarray:
        """The columns that are read of an index beside a shard."""
        try:
            index = np.load(path, allow_pickle=False)
        except (EOFError, ValueError) as error:
            raise ValueError(
                f"the index {path} must be a whole array, got {error}; write it again with "
                "`sslzoo data index`"
            ) from None
        columns = self.keys.columns(self.shards.keys)
        assert columns is not None
        if index.ndim != 2 or index.shape[1] <= max(columns):
            raise ValueError(
                f"the index {path} must have {max(columns) + 1} columns, as its list says, got "
                f"shape {index.shape}; write it again with `sslzoo data index`"
            )
        return index[:, columns]

    def fingerprint(self) -> str:
        parts = [*map(str, self.keys), *map(str, self.counts.tolist())]
        own = super().fingerprint() if self.is_remote else files_digest(self.names)
        return f"{text_digest(parts)}{own}"


class _TarFile:
    """An open tar file, read by position, so that processes may share it."""

    def __init__(self, path: Path, index: np.ndarray) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 (closed by __del__)
        self.index = index

    def part(self, offset: int, size: int, what: str) -> bytes:
        if offset < 0:
            got = "none" if offset == MISSING else "two or a link"
            raise ValueError(f"a sample must have {what}, got {got}")
        begin = offset - tarfile.BLOCKSIZE  # of the header, which tells an index of another file
        content = os.pread(self._file.fileno(), tarfile.BLOCKSIZE + size, begin)
        missing = tarfile.BLOCKSIZE + size - len(content)
        if missing:
            raise ValueError(f"the file ends {missing} bytes before the sample does")
        try:
            header = content[: tarfile.BLOCKSIZE]
            found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except tarfile.TarError:
            found = None
        if found != size:
            raise ValueError(
                f"the index must be that of the file, but no member of {size} bytes is at byte "
                f"{begin}; write the index again with `sslzoo data index`"
            )
        return content[tarfile.BLOCKSIZE :]

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def _value(content: bytes, key: str) -> Any:
    """A label or captions in a member: its text, or a field of its JSON."""
    text = content.decode()
    if not key.startswith("json."):
        return text.strip()
    found = json.loads(text)
    for part in key.split(".")[1:]:
        if not isinstance(found, dict) or part not in found:
            has = sorted(found) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"a JSON member must have the field {key[5:]!r}, got {has}")
        found = found[part]
    return found
