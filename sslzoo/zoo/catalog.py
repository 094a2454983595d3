"""Catalog: all entries that can be loaded by name, with local or remote weights.

Our cards are in `zoo_weights/` (in a clone) or next to this package (in the wheel), a user's own in
the `entries` folder of the cache, and those of the authors' released checkpoints in `zoo/cards`.
The latter's names, URLs, scores and hashes are from the authors' repositories, at the commits that
`source` names. No file was downloaded to write them: if the contents of a file are known from the
saving code alone, the note says "unverified".
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import re
import warnings
from functools import cache, lru_cache
from pathlib import Path

import sslzoo
from sslzoo.zoo.cache import home, place
from sslzoo.zoo.card import Card, read_card

# Release of the weights that the wheel omits.
RELEASE = "https://github.com/sslzoo/sslzoo/releases/download/weights-1"


# torch.hub's file names contain a prefix of the sha256.
_HASH_IN_NAME = re.compile(r"-[0-9a-f]{8,64}\.")
# States of an entry's weights, as printed by `sslzoo zoo list`.
STATES = {
    "here": "the weights are on this machine",
    "published hash": "can be fetched, and must match the hash on its card or in its file name",
    "first use": "can be fetched; no hash is published, so that of the first download is recorded "
    "and enforced from then on",
    "by hand": "has no URL; download it as its note explains, and pass file=PATH",
}


def card_folders() -> list[Path]:
    """Folders with card files: the wheel's, a clone's and the user's own."""
    package = Path(sslzoo.__file__).parent
    folders = [package / "zoo_weights", package.parent / "zoo_weights", home() / "entries"]
    return [folder for folder in folders if folder.is_dir()]


@lru_cache(maxsize=256)
def _card_at(path: Path, changed: int, own: bool) -> Card | str:
    """Read a card; for an invalid file of the user's, return the error text."""
    try:
        return read_card(path)
    except (ValueError, OSError) as error:
        if not own:
            raise
        warnings.warn(f"skipped a card: {error}", stacklevel=2)
        return str(error)


@cache
def official_cards() -> tuple[Card, ...]:
    """Cards of the checkpoints that the methods' authors released."""
    return tuple(map(read_card, sorted(Path(__file__).with_name("cards").glob("*.json"))))


def _read_all() -> tuple[dict[str, Card], dict[str, str]]:
    """Read all cards by name, and the errors of the user's invalid files by file name."""
    found: dict[str, Card] = {}
    broken: dict[str, str] = {}
    for folder in card_folders():
        for path in sorted(filter(Path.is_file, folder.glob("*.json"))):
            card = _card_at(path, path.stat().st_mtime_ns, folder == home() / "entries")
            if isinstance(card, Card):
                found.setdefault(card.name, card)
            else:
                broken[path.stem] = card
    official = {card.name: card for card in official_cards() if card.name not in broken}
    return {**official, **found}, broken


def entries() -> dict[str, Card]:
    """All entries by name.

    The first of several cards with the same name is used, card files before the authors'
    checkpoints. A file among the user's own that is not a card is skipped with a warning.

    Raises:
        ValueError: one of the library's own files is not a card.
    """
    return _read_all()[0]


def list_models(pattern: str = "*") -> list[str]:
    """List the names of the entries, sorted.

    Args:
        pattern: glob with * and ?, such as "moco*resnet50*".
    """
    return sorted(fnmatch.filter(entries(), pattern))


def card_named(name: str) -> Card:
    """Return the card of the entry with the given name.

    Raises:
        ValueError: there is none (the error lists similar names), or its file is not a card.
    """
    known, broken = _read_all()
    if name not in known:
        if name in broken:
            raise ValueError(broken[name])
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        told = f"; similar names: {close}" if close else ""
        raise ValueError(f"the model must be an entry of the zoo or a file, got {name!r}{told}")
    return known[name]


def local_file(card: Card) -> Path | None:
    """Path of the entry's weights next to its card; None if they are not there."""
    for folder in card_folders():
        if (folder / f"{card.name}.json").is_file():  # the first card of a name is used
            return folder / card.file if (folder / card.file).is_file() else None
    return None


def sources(card: Card) -> list[str]:
    """URLs of the entry's file; ours are assets of a release."""
    ours = [f"{RELEASE}/{card.file}"] if card.layout is None and not card.urls else []
    return [*card.urls, *ours]


def state_of(card: Card) -> str:
    """Availability of the entry's weights: one of `STATES`."""
    if local_file(card) is not None or place(card.name, card.file).is_file():
        return "here"
    if not sources(card):
        return "by hand"
    hashed = card.sha256 or card.md5 or _HASH_IN_NAME.search(card.file)
    return "published hash" if hashed else "first use"


def remove(name: str) -> tuple[list[Path], int]:
    """Remove a user's own entry, and the downloaded weights of any entry.

    Args:
        name: the entry's name.

    Returns:
        The removed files, and their bytes.

    Raises:
        ValueError: there is no such entry, or nothing of it that may be removed.
        OSError: a file cannot be removed.
    """
    card = card_named(name)
    own = home() / "entries"
    cached = place(card.name, card.file)
    paths = [own / f"{name}.json", own / card.file] if (own / f"{name}.json").is_file() else []
    if cached.parent.is_dir():
        paths += sorted(path for path in cached.parent.iterdir() if path.is_file())
    found = [path for path in paths if path.is_file()]
    if not found:
        raise ValueError(
            f"{name!r} must be an entry of your own or have downloaded weights to be removed, got "
            f"one with {state_of(card)!r}; the library's own files are not removed"
        )
    freed = sum(path.stat().st_size for path in found)
    for path in found:
        path.unlink()
    if cached.parent.is_dir():
        with contextlib.suppress(OSError):
            cached.parent.rmdir()
    return found, freed
