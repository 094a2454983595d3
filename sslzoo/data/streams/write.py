"""Write WebDataset shards of a folder of images, and indices of shards that exist."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from sslzoo.atomic_write import atomic_write
from sslzoo.checks import check_choice, check_positive
from sslzoo.data.check import (
    fitting_arguments,
    fitting_batch_size,
    fitting_size,
    folder_splits,
)
from sslzoo.data.image.decode import BROKEN, broken_error
from sslzoo.data.image.rasters import open_encoded
from sslzoo.data.listing import check_known, find_files
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.sources import expand, tar_shards
from sslzoo.data.streams.tar import (
    ShardList,
    TarKeys,
    TarShards,
    list_content,
    scan_tar,
    write_index,
)
from sslzoo.random import run_keys
from sslzoo.transforms.image.pixels import Decoding, Raster, is_deep, num_channels

_MIB = 1 << 20


class Written(NamedTuple):
    """What `write_shards` wrote of one split.

    Attributes:
        file: the JSON list of the shards.
        shards: number of shards.
        samples: number of samples.
        classes: number of classes; 0 without labels.
        skipped: files that cannot be read as images, or have no partner ("skip").
        fitting: arguments of the data module that fit the images.
    """

    file: Path
    shards: int
    samples: int
    classes: int
    skipped: list[str]
    fitting: dict[str, Any]


def write_shards(
    folder: str,
    output: str,
    shard_mb: float = 512.0,
    on_broken: str = "error",
    decode: bool = False,
    seed: int = 0,
    captions: bool = False,
) -> dict[str, Written]:
    """Write the images of a folder as tar shards of WebDataset.

    `<output>/<split>-000000.tar`, ... with an index beside each, `<split>.json` with the counts and
    classes, and `<split>.files.txt` with the files in the order of the samples, which is shuffled.
    Files are stored byte by byte. They are read back and compared; then the whole folder takes its
    name, so there is never a part of it.

    Args:
        folder: a folder in one of `ImageFolder`'s layouts.
        output: a folder that does not exist.
        shard_mb: size of a shard in MiB; the last is smaller.
        on_broken: raise an "error" for a file that is no image, or "skip" and count it.
        decode: decode every image, which finds truncated ones; otherwise headers are read.
        seed: seed of the order.
        captions: also write the text file beside each image (`NAME.txt`), for `ImageTextShards`.
            The classes are written if the training folder has them, and other splits no others.

    Returns:
        What was written, by split.

    Raises:
        ValueError: there are no images, one cannot be read or, with captions, has no text, or the
            output exists.
        OSError: writing failed; nothing is left.
    """
    check_positive("shard_mb", shard_mb)
    check_choice("on_broken", on_broken, ("error", "skip"))
    target = Path(output).expanduser()
    if os.path.lexists(target):
        raise ValueError(f"the output must not exist, got {output!r}; remove it or name another")
    splits, _ = folder_splits(folder, None)
    splits.pop("outside", None)
    if not any(splits.values()):
        raise ValueError(f"{folder!r} must hold images, got none")
    classes = sorted({label for _, label in next(iter(splits.values())) if label})
    lone = _texts_without_image(folder, splits, on_broken) if captions else []
    unknown = {label for files in splits.values() for _, label in files} - {*classes}
    if captions and classes and unknown:
        warnings.warn(
            "the sub-folders are not written as classes, since training lacks "
            f"{sorted(unknown)[:3]} of another split",
            stacklevel=2,
        )
        classes = []
        splits = {split: [(path, "") for path, _ in files] for split, files in splits.items()}
    for split, files in splits.items():
        check_known({label for _, label in files}, classes or [""], f"the split {split!r}")
    numbers = {name: i for i, name in enumerate(classes)}
    how = _Writing(numbers, int(shard_mb * _MIB), on_broken == "skip", decode, seed, captions)
    target.parent.mkdir(parents=True, exist_ok=True)
    begin = str(target.with_name(f".{target.name}."))
    try:
        part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            written = {split: _write(part, split, files, how) for split, files in splits.items()}
            part.chmod(0o755)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if error.errno is None or not str(error.filename or begin).startswith(begin):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None
    next(iter(written.values())).skipped.extend(lone)
    return {name: one._replace(file=target / one.file.name) for name, one in written.items()}


def _texts_without_image(
    folder: str, splits: dict[str, list[tuple[str, str]]], on_broken: str
) -> list[str]:
    images = {os.path.splitext(path)[0] for files in splits.values() for path, _ in files}
    found = find_files(folder, (".txt",)).paths
    lone = [path for path in found if os.path.splitext(path)[0] not in images]
    if lone and on_broken == "error":
        raise ValueError(
            f"every text must have an image, got {len(lone)} texts without an image, such as "
            f'{lone[0]}; remove them, or set on_broken="skip" to leave them out'
        )
    return lone


class _Writing(NamedTuple):
    """What `write_shards` was asked for, beside the files."""

    classes: dict[str, int]  # name -> number
    shard_bytes: int
    skips: bool
    decode: bool
    seed: int
    captions: bool


def _write(folder: Path, split: str, files: list[tuple[str, str]], how: _Writing) -> Written:
    shards: list[_Shard] = []
    kept: list[str] = []
    skipped: list[str] = []
    forms: list[_Form] = []
    try:
        for path, members in _samples(files, how, skipped, forms):
            if not shards or shards[-1].is_full(members, how.shard_bytes):
                if shards:
                    shards[-1].close()
                shards.append(_Shard(folder / f"{split}-{len(shards):06d}.tar"))
            shards[-1].add(f"{len(kept):09d}", members)
            kept.append(path)
    finally:
        if shards:
            shards[-1].close()
    if not shards:
        raise ValueError(f"the split {split!r} must hold readable images, got none of {len(files)}")
    file = _write_list(folder / f"{split}.json", shards, list(how.classes), how.captions)
    root = os.path.commonpath([os.path.dirname(path) for path, _ in files])
    with open(folder / f"{split}.files.txt", "wb") as text:
        text.writelines(os.fsencode(os.path.relpath(path, root)) + b"\n" for path in kept)
    fitting = _fitting(forms, how.captions)
    return Written(file, len(shards), len(kept), len(how.classes), skipped, fitting)


class _Form(NamedTuple):
    """What the header of an image tells."""

    shorter: int  # of its sides, in pixels
    channels: int
    is_deep: bool  # more than 8 bits per channel


def _fitting(forms: list[_Form], captions: bool) -> dict[str, Any]:
    shorter = [form.shorter for form in forms]
    if captions:
        init = {"size": fitting_size(shorter)}
        args = {"transform": {"class_path": "sslzoo.transforms.clip_views", "init_args": init}}
    else:
        photos = not any(form.is_deep for form in forms)
        args = fitting_arguments(shorter, [form.channels for form in forms], photos)
    return {**args, "batch_size": fitting_batch_size(len(forms))}


def _form_of(image: Image.Image | Raster) -> _Form:
    channels = image.shape[0] if isinstance(image, Raster) else num_channels(image)
    return _Form(min(image.size), channels, is_deep(image))


def _samples(
    files: list[tuple[str, str]], how: _Writing, skipped: list[str], forms: list[_Form]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each file in shuffled order, with the members of its sample."""
    order = run_keys(how.seed, "shards").permutation("files", len(files))[0].tolist()
    for path, label in (files[i] for i in order):
        try:
            content = Path(path).read_bytes()
            with open_encoded(content, path) as image:
                if how.decode:
                    Decoding(None, may_be_dark=True)(image)
                form = _form_of(image)
            text = _text_beside(path) if how.captions else b""
        except BROKEN as error:
            if not how.skips:
                raise broken_error(path, error) from error
            skipped.append(path)
            continue
        forms.append(form)
        members = {path.rpartition(".")[2].lower(): content}
        if how.classes:
            members["cls"] = str(how.classes[label]).encode()
        if how.captions:
            members["txt"] = text
        yield path, members


def _text_beside(path: str) -> bytes:
    """The text file of an image's name.

    Raises:
        ValueError: there is none, or it is empty or not UTF-8.
    """
    file = Path(path).with_suffix(".txt")
    text = file.read_bytes() if file.is_file() else b""
    if not text.decode("utf-8-sig").strip():
        raise ValueError(f"an image must have its captions in {file.name}, got none")
    return text


def _write_list(file: Path, shards: list[_Shard], classes: list[str], captions: bool) -> Path:
    """Read the shards back, write their indices, and list them."""
    extensions = sorted(set().union(*(shard.extensions for shard in shards)) - {"cls", "txt"})
    keys = TarKeys(tuple(extensions), "cls" if classes else None, "txt" if captions else None)
    for shard in shards:
        shard.verify(keys)
    listed = ShardList(
        [shard.path.name for shard in shards],
        [shard.count for shard in shards],
        [shard.path.stat().st_size for shard in shards],
        keys,
        classes or None,
    )
    file.write_text(list_content(listed), encoding="utf-8")
    return file


class _Shard:
    """A tar file that is being written; members have neither owner nor time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.extensions: set[str] = set()
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._digest = hashlib.blake2b(digest_size=16)

    def is_full(self, members: dict[str, bytes], size: int) -> bool:
        """Whether the members do not fit in `size` bytes."""
        more = sum(1024 + len(content) for content in members.values())
        return self._tar.offset + more > size

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Write a sample."""
        for extension, content in members.items():
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
            self._digest.update(content)
        self.extensions.update(members)
        self.count += 1

    def close(self) -> None:
        """Finish the file."""
        self._tar.close()

    def verify(self, keys: TarKeys) -> None:
        """Write the index, and compare what it gives with what was written.

        Raises:
            ValueError: the file holds other bytes.
        """
        index = scan_tar(self.path, keys)
        write_index(self.path, index)
        found = hashlib.blake2b(digest_size=16)
        with open(self.path, "rb") as file:
            for offset, size in index.reshape(-1, 2).tolist():
                if offset >= 0:
                    file.seek(offset)
                    found.update(file.read(size))
        if len(index) != self.count or found.digest() != self._digest.digest():
            raise ValueError(
                f"the shard {self.path.name} must hold the {self.count} samples that were written, "
                "got others when it was read back; check the disk"
            )


def index_shards(
    sources: Sequence[str],
    image: str | None,
    label: str | None,
    file: str,
    caption: str | None = None,
) -> int:
    """Write the indices of tar shards that exist, and the JSON list of them.

    Args:
        sources: the tar files, or patterns of them.
        image: extension of the image (several, with commas); None: any.
        label: that of the label; None: no labels; "auto": "cls" if a sample has it.
        file: the list to write, in the folder of the shards.
        caption: extension of the captions, such as "txt"; None: no captions.

    Returns:
        The number of samples.

    Raises:
        ValueError: a shard is broken, a sample lacks its image, label or captions, the list exists,
            or it is not beside the shards.
    """
    target = Path(file).expanduser()
    names = [name for source in sources for name in expand(source)]
    folders = {Path(name).resolve().parent for name in names}
    if target.exists() or target.suffix != ".json" or folders != {target.resolve().parent}:
        raise ValueError(
            "the list must be a new .json file in the one folder of the shards, got "
            f"{file!r} for shards in {sorted(map(str, folders))[:3]}"
        )
    found = tar_shards(names, image, label, ShardCache(), caption_key=caption).shards
    assert isinstance(found, TarShards)
    assert found.scanned is not None
    for name, index in zip(names, found.scanned, strict=True):
        write_index(Path(name), index)
    sizes = [os.path.getsize(name) for name in names]
    near = [Path(name).name for name in names]
    listed = ShardList(near, found.counts.tolist(), sizes, found.keys)
    atomic_write(target, list_content(listed))
    return len(found)
