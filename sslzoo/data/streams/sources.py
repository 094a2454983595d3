"""Find the shards that a name, pattern, folder or address stands for."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.data.streams.litdata import lit_shards
from sslzoo.data.streams.parquet import parquet_shards
from sslzoo.data.streams.remote import AddressError, ShardCache
from sslzoo.data.streams.shards import Shards, library, path_of
from sslzoo.data.streams.tar import (
    IMAGE_KEYS,
    MISSING,
    BrokenShardError,
    ShardList,
    TarKeys,
    TarShards,
    parse_list,
    sample_members,
    scan_tar,
)

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SPLIT = re.compile(r"(?<![a-z])(train|valid|validation|val|test|dev)(?![a-z])")
_CHOICE = re.compile(r"\{([^{},]*(?:,[^{},]*)+)\}")
_SUFFIXES = (".tar", ".parquet")
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_FILES = (*_SUFFIXES, ".json", *_COMPRESSED)


class Found(NamedTuple):
    """Shards that were opened.

    Attributes:
        shards: the shards.
        left_out: names of shards that cannot be read at all ("skip").
        lost: number of samples that they and the ends of truncated shards held; a shard of which
            it is unknown counts as one.
    """

    shards: Shards
    left_out: Sequence[str] = ()
    lost: int = 0


def open_shards(
    source: str | Sequence[str],
    image_key: str | None,
    label_key: str | None,
    cache: ShardCache,
    skip: bool = False,
    lone: bool = False,
    caption_key: str | None = None,
) -> Found:
    """Open shards of any format, which the names tell.

    Args:
        source: a JSON list of shards; a pattern such as `x-{000..127}.tar`, `x-*.tar`, or of
            `.parquet`; a folder of such files, or of LitData; or a list of these.
        image_key: extension, column or key of the image; None: the format's usual.
        label_key: that of the label; None: no labels; "auto": the format's usual, if it is there.
        cache: downloads addresses.
        skip: leave out broken shards, with a warning.
        lone: open tar shards of which a sample lacks a member.
        caption_key: that of the captions; None: no captions.

    Raises:
        ValueError: there is no such shard, or one is broken.
        ImportError: the format needs a library that is not installed.
    """
    names = [name for each in ([source] if isinstance(source, str) else source)
             for name in expand(each)]  # fmt: skip
    if len(names) == 1 and _kind(names[0], cache) == "chunks":
        if names[0] != path_of(names[0]):
            raise ValueError(
                f"the address of LitData must have no query, got {names[0]}, since its chunks are "
                "read from addresses beside it"
            )
        folder = path_of(names[0]).removesuffix("/index.json")
        return Found(lit_shards(folder, image_key, label_key, cache, caption_key))
    suffixes = set(map(_suffix, names))
    if suffixes == {".parquet"}:
        shards, left_out = parquet_shards(names, image_key, label_key, cache, skip, caption_key)
        return Found(shards, left_out, len(left_out))
    if suffixes == {".json"}:
        lists = [parse_list(_text(name, cache), name) for name in names]
        return _listed(_joined(lists), (image_key, label_key, caption_key), cache, skip)
    if suffixes == {".tar"}:
        return tar_shards(names, image_key, label_key, cache, skip, lone, caption_key)
    packed = next((name for name in names if _suffix(name) in _COMPRESSED), None)
    raise ValueError(
        "shards must be .tar or .parquet files, a .json list of them, or a folder of LitData, got "
        f"{packed or names[0]!r}{'' if len(suffixes) == 1 else ' besides other formats'}"
        f"{'' if packed is None else '; decompress it'}"
    )


def _suffix(name: str) -> str:
    """The extension of a file or address, in lower case."""
    return Path(path_of(name)).suffix.lower()


def expand(source: str) -> list[str]:
    """The names that a pattern or a folder stands for, in order.

    Raises:
        ValueError: there is none.
    """
    source = os.path.expanduser(source)
    path = Path(source)
    if os.path.isfile(source):  # False for a long pattern, which is an error of Path.is_file
        return [source]
    begin = re.split(r"[*?\[]", source, maxsplit=1)[0]
    named = begin if begin == source else os.path.dirname(begin)
    is_name = "{" in named and os.path.exists(named)
    if choices := [] if is_name else _choices(source):
        return [name for choice in choices for name in expand(choice)]
    if "://" in source:
        return _remote(source)
    if path.is_dir():
        if (path / "index.json").is_file():
            return [str(path / "index.json")]
        names = [str(file) for file in sorted(path.iterdir()) if file.suffix in _SUFFIXES]
        if len({*map(_suffix, names)}) > 1:  # such as img2dataset's, whose Parquet has no images
            raise ValueError(
                f"a folder must hold shards of one format, got .tar and .parquet in {path}; name "
                f"those of one, such as '{path}/*.tar'"
            )
        _check_one_split(path, names)
    else:
        names = sorted(glob.glob(source)) if glob.has_magic(source) else []
    if not names:
        raise ValueError(
            "shards must be existing .tar or .parquet files, a .json list of them, or a folder of "
            f"such files, got {source!r}"
        )
    return names


def _choices(source: str) -> list[str]:
    """What the first {000..127} or {a,b} of a pattern stands for; empty without one."""
    found = _RANGE.search(source)
    if found is not None:
        first, last = found.groups()
        each = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    elif (found := _CHOICE.search(source)) is not None:
        each = found[1].split(",")
    else:
        return []
    return [f"{source[: found.start()]}{one}{source[found.end() :]}" for one in each]


def _check_one_split(folder: Path, names: Sequence[str]) -> None:
    first: dict[tuple[str, ...], str] = {}  # the splits in a name -> how the first such name begins
    for name in (Path(name).name for name in names):
        words = list(_SPLIT.finditer(name.lower()))
        if words:
            first.setdefault(tuple(word[0] for word in words), name[: words[-1].end()])
    if len(first) > 1:
        found = ", ".join(sorted("-".join(splits) for splits in first))
        begin = first[min(first)]
        raise ValueError(
            f"a folder must hold the shards of one split, got {found} in {folder}; name those of "
            f"one, such as '{folder}/{begin}*{Path(names[0]).suffix}'"
        )


def is_folder_of_images(source: object) -> bool:
    """Whether a source is a folder without shards, such as of images in class folders."""
    if not isinstance(source, str) or not Path(source).expanduser().is_dir():
        return False
    path = Path(source).expanduser()
    files = {file.suffix for file in path.iterdir() if file.is_file()}
    return not files & set(_SUFFIXES) and not (path / "index.json").is_file()


def _remote(source: str) -> list[str]:
    has_query = source.startswith(("http://", "https://"))  # elsewhere `?` is a character's pattern
    if not glob.has_magic(path_of(source) if has_query else source):
        return [source]
    fsspec = library("fsspec", source)
    files, _, _ = fsspec.get_fs_token_paths(source)
    protocol = source.partition("://")[0]
    names = sorted(name if "://" in name else f"{protocol}://{name}" for name in files.glob(source))
    if not names:
        raise ValueError(f"the pattern of an address must match shards, got none of {source}")
    return names


def _text(name: str, cache: ShardCache) -> str:
    return cache.text(name) if cache.is_remote(name) else Path(name).read_text(encoding="utf-8")


def _kind(name: str, cache: ShardCache) -> str:
    """What an `index.json` lists: "chunks" of LitData or a "shardlist"; "" of other files."""
    is_folder = cache.is_remote(name) and _suffix(name) not in _FILES
    folder = path_of(name)
    index = f"{folder.rstrip('/')}/index.json{name[len(folder) :]}" if is_folder else name
    if not path_of(index).endswith("index.json"):
        return ""
    try:
        content = json.loads(_text(index, cache))
    except AddressError as error:
        if not is_folder:
            raise
        raise AddressError(
            f"a folder of an address must be one of LitData, whose index.json can be read, got "
            f"{name} ({error}); name shards by a pattern, such as {name.rstrip('/')}/*.parquet"
        ) from error
    except ValueError as error:
        raise ValueError(f"{index} must be an index in JSON, got {error}") from None
    return "chunks" if "chunks" in content else "shardlist"


def _joined(lists: Sequence[ShardList]) -> ShardList:
    first = lists[0]
    if any((each.keys, each.classes) != (first.keys, first.classes) for each in lists):
        raise ValueError("lists of shards must have the same members and classes, got others")
    sizes = [size for each in lists for size in each.sizes or []]
    names = [name for each in lists for name in each.names]
    counts = [count for each in lists for count in each.counts]
    return ShardList(
        names, counts, sizes if len(sizes) == len(names) else None, first.keys, first.classes
    )


def _listed(
    shards: ShardList,
    keys: tuple[str | None, str | None, str | None],
    cache: ShardCache,
    skip: bool,
) -> Found:
    """The tar shards of a list, whose sizes are checked against it."""
    lost: list[int] = []
    for i, name in enumerate(shards.names):
        if cache.is_remote(name):
            continue
        size = os.path.getsize(name) if Path(name).is_file() else 0
        wanted = size if shards.sizes is None else shards.sizes[i]
        if 0 < size == wanted:
            continue
        problem = f"the shard {name} must have {wanted or 'its'} bytes as its list says, got {size}"
        if not skip:
            raise ValueError(f"{problem}; copy it again")
        if size:
            rank_zero_warn(f"{problem}; the samples that it lacks are skipped")
        else:
            lost.append(i)
    left_out = [shards.names[i] for i in lost]
    count = sum(shards.counts[i] for i in lost)
    kept = shards.without(lost)
    known = kept.keys
    image_key = keys[0]
    label_key, caption_key = (None if key is None else _extension(key) for key in keys[1:])
    if known is None or image_key is not None:
        full = [name for name, count in zip(kept.names, kept.counts, strict=True) if count]
        known = _keys(full, image_key, label_key, cache, caption_key)
    else:
        own = None if known.label == caption_key else known.label  # of lists without "caption"
        label = own if label_key == "auto" else label_key
        known = TarKeys(known.image, label, caption_key)
    return Found(TarShards(kept, known, cache), left_out, count)


def tar_shards(
    names: Sequence[str],
    image_key: str | None,
    label_key: str | None,
    cache: ShardCache,
    skip: bool = False,
    lone: bool = False,
    caption_key: str | None = None,
) -> Found:
    """Open local tar files by a scan of their headers; see `open_shards`."""
    remote = next((name for name in names if cache.is_remote(name)), None)
    if remote is not None:
        raise ValueError(
            f"tar shards of an address must come with a .json list of their counts, got {remote}; "
            "`sslzoo data index` writes it from local copies"
        )
    label_key, caption_key = (
        None if key is None else _extension(key) for key in (label_key, caption_key)
    )
    keys = TarKeys(_images(image_key), "cls" if label_key == "auto" else label_key, caption_key)
    kept: list[str] = []
    left_out: list[str] = []
    scanned: list[np.ndarray] = []
    lost = 0
    for name in names:
        try:
            index = scan_tar(name, keys)
        except BrokenShardError as error:
            if not skip:
                raise
            index = error.index
            if error.is_whole:
                rank_zero_warn(f"{error}; such samples are skipped")
            else:
                rank_zero_warn(f"{error}; the number of samples that are lost is unknown")
                lost += 1
            if not len(index):
                left_out.append(name)
                continue
        kept.append(name)
        scanned.append(index)
    if label_key == "auto" and not any(map(_has_labels, scanned)):
        keys = keys._replace(label=None)
    if not (skip or lone):
        for name, index in zip(kept, scanned, strict=True):
            _check_members(name, index, keys)
    shards = ShardList(kept, [len(index) for index in scanned])
    return Found(TarShards(shards, keys, cache, scanned), left_out, lost)


def _check_members(name: str, index: np.ndarray, keys: TarKeys) -> None:
    members = {"image_key": "/".join(keys.image), "label_key": keys.label, "text_key": keys.caption}
    for column, (argument, wanted) in zip((0, 2, 4), members.items(), strict=True):
        lacking = np.flatnonzero(index[:, column] < 0) if wanted is not None else np.array([])
        if len(lacking):
            first = int(lacking[0])
            raise ValueError(
                f"every sample must have a member .{wanted}, but {len(lacking)} lack it, the first "
                f"is sample {first} of {name} ({sample_members(name, first)}); set {argument} to "
                'its member, repair it, or set on_broken="skip" to skip and count such samples'
            )


def _keys(
    names: Sequence[str],
    image_key: str | None,
    label_key: str | None,
    cache: ShardCache,
    caption_key: str | None,
) -> TarKeys:
    """The members to read; "auto" looks at the first shard that has samples."""
    keys = TarKeys(_images(image_key), label_key, caption_key)
    if label_key != "auto":
        return keys
    for name in names:
        try:
            with cache.held(name) as path:
                found = scan_tar(path, keys._replace(label="cls"))
        except BrokenShardError as error:
            found = error.index
        if len(found):
            return keys._replace(label="cls" if _has_labels(found) else None)
    return keys._replace(label=None)


def _images(image_key: str | None) -> tuple[str, ...]:
    if image_key is None:
        return IMAGE_KEYS
    return tuple(_extension(key) for key in image_key.split(","))


def _extension(key: str) -> str:
    """An extension as members have it: in lower case, without blanks and the first dot."""
    extension, dot, fields = key.strip().removeprefix(".").partition(".")
    is_field = extension.lower() == "json"  # whose case counts
    return f"{extension.lower()}{dot}{fields if is_field else fields.lower()}"


def _has_labels(index: np.ndarray) -> bool:
    """Whether a sample of a shard has a label."""
    return bool((index[:, 2] != MISSING).any())
