"""Weights files: resolve a name, path or URL to a local, downloaded file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from torch import nn

from sslzoo.run_folder import RunFolder
from sslzoo.trust import check_fit, is_folder_of_shards, shell
from sslzoo.zoo.build import complete
from sslzoo.zoo.cache import ANY, check, fetch, forget, is_url, place, refuse_malformed
from sslzoo.zoo.card import LARGEST, Card, read_card
from sslzoo.zoo.catalog import card_named, entries, local_file, sources
from sslzoo.zoo.converters import convert
from sslzoo.zoo.download import local_path, resolved
from sslzoo.zoo.safe_read import read, refuse_nan

_LONGEST = 4096  # characters of a path or a URL


class Found(NamedTuple):
    """A weights file and its card.

    Args:
        path: the file; for a TensorFlow checkpoint the prefix of its files.
        card: its card; None if there is none.
    """

    path: Path
    card: Card | None


def locate(
    name: str | os.PathLike[str],
    sha256: str | None = None,
    file: str | os.PathLike[str] | None = None,
    strict: bool = False,
    trust: bool = False,
) -> Found:
    """Find, or download, the file that `load` would read, and verify its hash.

    A downloaded file is read and checked against its card before it is kept.

    Args:
        name: see `load`.
        sha256: see `load`.
        file: see `load`.
        strict: refuse to download a file without a published, given or recorded hash. False: the
            first download is trusted, and its hash enforced from then on.
        trust: see `load`.

    Raises:
        ValueError: the entry does not exist, the hash differs, or the file cannot be read.
        OSError: it cannot be found or fetched.
    """
    name = _text("name", name)
    refuse_malformed(sha256)
    if is_url(name):
        return _from_address(name, sha256, strict, trust)
    if name in entries():
        card = card_named(name)
        if file is not None:
            return _local(Path(_text("file", file)), card, sha256)
        path = local_file(card)
        if path is not None:
            return _local(path, card, sha256)
        target = place(card.name, card.file)
        return Found(_fetch(sources(card), target, card, sha256, strict, trust, card.name), card)
    path = Path(name)
    # os.path's functions, unlike Path's, accept a name that is too long for the file system.
    if not os.path.exists(path) and not os.path.isfile(f"{name}.index"):
        raise FileNotFoundError(_nowhere(name))
    _refuse_irregular(path)
    return _local(path, _card_beside(path), sha256)


def _text(what: str, given: Any) -> str:
    """Convert a name or a path to text.

    Raises:
        ValueError: the argument is something else, or cannot be a path.
    """
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    kinds = "an entry of the zoo, a path or a URL" if what == "name" else "a path"
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} must be {kinds}, got {given!r}")
    if "\0" in text or len(text) > _LONGEST:
        raise ValueError(
            f"{what} must be {kinds} of at most {_LONGEST} characters, without NUL, got "
            f"{text[:80]!r} with {len(text)}"
        )
    return text


def _nowhere(name: str) -> str:
    if "/" not in name and os.sep not in name:
        try:
            card_named(name)
        except ValueError as error:
            return str(error)
    return f"there is no file at {name!r}"


def _refuse_irregular(path: Path) -> None:
    if path.exists() and not path.is_file() and not Path(f"{path}.index").is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        last = RunFolder(path).checkpoint
        more = f"; its weights are in {str(last)!r}" if last.is_file() else ""
        if any(is_folder_of_shards(folder) for folder in (path, last)):
            more = f"; run `sslzoo consolidate {path} --to FILE.ckpt` and use that file"
        raise ValueError(f"weights must be a file, got {str(path)!r}, which is {kind}{more}")


def _card_beside(path: Path) -> Card | None:
    beside = path.with_suffix(".json")
    return _read_card(beside) if path.suffix == ".safetensors" and beside.is_file() else None


def _read_card(path: Path) -> Card:
    """Read a card and build its image view once, to detect contradictory values."""
    card = read_card(path)
    if card.preprocessing is not None and card.kind == "image":
        card.preprocess()
    return card


def _local(path: Path, card: Card | None, sha256: str | None) -> Found:
    """Return a local file after verifying its hash.

    Raises:
        ValueError: its hash differs, or it is a folder or a device.
    """
    _refuse_irregular(path)
    if path.is_file():
        for wanted in {sha256, card.sha256 if card else None} - {None, ANY}:
            check(path, wanted)
        if card is not None and card.md5 is not None:
            check(path, None, card.md5)
    return Found(path, card)


def _fetch(
    urls: list[str],
    target: Path,
    card: Card | None,
    sha256: str | None,
    strict: bool,
    trust: bool,
    who: str,
) -> Path:
    """Download a file and check it against the hashes of card and user, and the card itself."""
    published = None if card is None else card.sha256
    given = None if sha256 == ANY else sha256
    if given and published:
        longer, shorter = sorted((given.lower(), published.lower()), key=len, reverse=True)
        if not longer.startswith(shorter):
            raise ValueError(f"sha256 must be that of the card of {who}, {published}, got {given}")
        given = longer
    wanted = given or published or sha256
    md5 = None if card is None else card.md5
    return fetch(urls, target, wanted, md5, _fits(card, who, trust), strict, who)


def _fits(card: Card | None, who: str, trust: bool) -> Callable[[Path], None]:
    """Make the check that a file is the card's encoder or, without a card, is readable.

    Only names, shapes and values are checked: the encoder is built without memory.
    """

    def parse(path: Path) -> None:
        saved = read(path)
        if card is None or trust or (card.layout is None and path.suffix != ".safetensors"):
            refuse_nan(saved, str(path))
            return
        state = saved if card.layout is None else convert(saved, card.layout, str(path))[0]
        encoder = shell(card.backbone, nn.Module, who)
        if encoder is None:
            return
        check_fit(encoder, complete(state, encoder, str(path)), str(path))
        card.check_width(encoder)

    return parse


def _from_address(url: str, sha256: str | None, strict: bool, trust: bool) -> Found:
    """Download the card next to the weights, then the weights, which must have the card's hash.

    A file:// URL is read in place: the file may change, and is not a download.
    """
    resolved(url)  # raises for an invalid URL
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _from_file(url, sha256, strict)
    name = Path(parts.path).name
    target, card = place(url, name), None
    beside, fresh = place(url, f"{Path(name).stem}.json"), False
    if name.endswith(".safetensors") and (beside.is_file() or not target.is_file()):
        fresh = not beside.is_file()
        about = parts._replace(path=f"{parts.path.removesuffix('.safetensors')}.json").geturl()
        try:
            card = _read_card(fetch([about], beside, ANY, parse=_read_card, most=LARGEST))
        except FileNotFoundError:
            card = None  # weights alone
    try:
        return Found(_fetch([url], target, card, sha256, strict, trust, url), card)
    except BaseException:
        if fresh and not target.is_file():
            forget(beside)  # a card without weights is useless
        raise


def _from_file(url: str, sha256: str | None, strict: bool) -> Found:
    path = local_path(url)
    if not path.exists():
        raise FileNotFoundError(f"there is no file at {url}")
    _refuse_irregular(path)
    card = _card_beside(path)
    published = card is not None and (card.sha256 or card.md5)
    if strict and sha256 is None and not published:
        raise ValueError(
            f"{url} must have a published hash with strict=True, got none; pass sha256='...'"
        )
    return _local(path, card, sha256)
