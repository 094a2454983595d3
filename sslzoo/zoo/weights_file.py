"""Weights file: what is behind a name, a path or an address, fetched where it is not here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from sslzoo.zoo.cache import ANY, check, fetch, is_url, place
from sslzoo.zoo.card import Card, read_card
from sslzoo.zoo.listing import card_named, entries, local_file, sources


class Found(NamedTuple):
    """A file of weights.

    Args:
        path: of the file; of a TensorFlow checkpoint the prefix of its files.
        card: what is known about it, None for nothing.
        ours: whether it is on this machine by its user's will, so that its classes are trusted.
    """

    path: Path
    card: Card | None
    ours: bool


def locate(name: str | Path, sha256: str | None = None, file: str | None = None) -> Found:
    """The file that `load` would read, on this machine after this, its hash checked.

    Args:
        name: see `load`.
        sha256: see `load`.
        file: see `load`.

    Raises:
        ValueError: there is no such entry, or the hash is another one.
        OSError: it cannot be found or fetched.
    """
    name = str(name)
    if is_url(name):
        return _from_address(name, sha256)
    if name in entries():
        card = card_named(name)
        path = Path(file) if file is not None else local_file(card)
        if path is None:
            wanted = card.sha256 or sha256 if sha256 in (None, ANY) else sha256
            target = place(card.name, card.file)
            fetched = Found(fetch(sources(card), target, wanted, card.md5), card, True)
            return _checked(fetched, sha256)
        return _checked(Found(path, card, True), sha256)
    path = Path(name)
    if not path.is_file() and not Path(f"{name}.index").is_file():
        raise FileNotFoundError(_nowhere(name))
    beside = path.with_suffix(".json")
    known = path.suffix == ".safetensors" and beside.is_file()
    return _checked(Found(path, read_card(beside) if known else None, True), sha256)


def _nowhere(name: str) -> str:
    try:
        card_named(name)
    except ValueError as error:
        return str(error)
    return f"no file at {name!r}"


def _checked(found: Found, sha256: str | None) -> Found:
    path, card, _ = found
    if path.is_file():
        for wanted in {sha256, card.sha256 if card else None} - {None, ANY}:
            check(path, wanted)
        if card is not None and card.md5 is not None:
            check(path, None, card.md5)
    return found


def _from_address(url: str, sha256: str | None) -> Found:
    """Fetch weights, and before them the card beside them, whose hash they must have."""
    name = Path(urlsplit(url).path).name
    target, beside = place(url, name), place(url, f"{Path(name).stem}.json")
    card = None
    if name.endswith(".safetensors") and (beside.is_file() or not target.is_file()):
        try:
            card = read_card(fetch([f"{url.removesuffix('.safetensors')}.json"], beside, ANY))
        except FileNotFoundError:
            card = None  # weights alone
    if card is not None:
        sha256 = card.sha256 if sha256 in (None, ANY) else sha256
    found = Found(fetch([url], target, sha256), card, url.startswith("file:"))
    return _checked(found, None)
