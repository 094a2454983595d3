"""Entries: every card that can be loaded by name, whether its weights are here or elsewhere.

Ours lie in `zoo_weights/` (in a clone) or beside this package (in the wheel), a user's own in the
`entries` folder of the cache, and the authors' released checkpoints in `official.py`.
"""

from __future__ import annotations

import difflib
import fnmatch
from functools import lru_cache
from pathlib import Path

import sslzoo
from sslzoo.zoo.cache import home
from sslzoo.zoo.card import Card, read_card
from sslzoo.zoo.official import OFFICIAL

# Of the weights that the wheel leaves out.
RELEASE = "https://github.com/sslzoo/sslzoo/releases/download/weights-1"


def card_folders() -> list[Path]:
    """Where cards lie as files: the wheel's, a clone's and the user's own."""
    package = Path(sslzoo.__file__).parent
    folders = [package / "zoo_weights", package.parent / "zoo_weights", home() / "entries"]
    return [folder for folder in folders if folder.is_dir()]


@lru_cache(maxsize=256)
def _card_at(path: Path, changed: int) -> Card:
    return read_card(path)


def entries() -> dict[str, Card]:
    """Every entry by name; of two cards of one name the first counts, files before official ones.

    Raises:
        ValueError: a file is not a card.
    """
    found: dict[str, Card] = {}
    for folder in card_folders():
        for path in sorted(folder.glob("*.json")):
            card = _card_at(path, path.stat().st_mtime_ns)
            found.setdefault(card.name, card)
    return {**{card.name: card for card in OFFICIAL}, **found}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the entries, sorted.

    Args:
        pattern: with * and ?, such as "moco*resnet50*".
    """
    return sorted(fnmatch.filter(entries(), pattern))


def card_named(name: str) -> Card:
    """The entry of that name.

    Raises:
        ValueError: there is none; names that are close.
    """
    known = entries()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        raise ValueError(f"no entry of the zoo and no file is named {name!r}; close: {close}")
    return known[name]


def local_file(card: Card) -> Path | None:
    """The entry's weights where they came with this package, None where they did not."""
    for folder in card_folders():
        if (folder / card.file).is_file() and (folder / f"{card.name}.json").is_file():
            return folder / card.file
    return None


def sources(card: Card) -> list[str]:
    """Where the entry's file can be fetched; ours from the release whose assets they are."""
    ours = [f"{RELEASE}/{card.file}"] if card.layout is None and not card.urls else []
    return [*card.urls, *ours]
