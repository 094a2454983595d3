"""TextGrids: the tiers of Praat's files, which forced aligners write.

Source: Praat's manual, "TextGrid file formats". In the long and the short form alike, only
free-standing numbers, quoted texts and flags count; the rest, such as "xmin =", is a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sslzoo.text_file import read_text

_TOKEN = re.compile(
    r'"(?:[^"]|"")*"'  # a text, in which a quote is doubled
    r"|(?<!\S)!.*"  # a comment
    r"|(?<!\S)[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?!\S)"
    r"|(?<!\S)<\w+>(?!\S)"
)
Interval = tuple[float, float, str]  # begin and end in seconds, and the text


def read_tier(path: str | Path, name: str) -> tuple[list[Interval], float]:
    """The intervals of a tier that have a text, and the end of the file in seconds.

    Args:
        path: a .TextGrid file, in the long or the short form.
        name: the tier's name; one that ends in " - NAME" will do, as the Montreal Forced Aligner
            calls it where a file has several speakers.

    Raises:
        ValueError: the file is no TextGrid, ends too early, or has not exactly one such tier.
    """
    tokens = _tokens(read_text(path))
    try:
        kinds = next(tokens).partition(" ")[0], next(tokens)  # "ooTextFile short" of old files
        if kinds != ("ooTextFile", "TextGrid"):
            raise ValueError(f"the first texts must be ooTextFile and TextGrid, got {kinds}")
        end = [float(next(tokens)) for _ in range(2)][1]  # the times of the file
        tiers = []
        if next(tokens) == "<exists>":
            tiers = [_tier(tokens) for _ in range(int(next(tokens)))]
    except StopIteration:
        raise ValueError(f"a TextGrid must be whole, got one that ends too early: {path}") from None
    except ValueError as error:
        raise ValueError(f"a TextGrid must be as Praat writes it, got {path}: {error}") from None
    found = [rows for own, rows in tiers if own == name or own.endswith(f" - {name}")]
    if len(found) != 1:
        raise ValueError(
            f"a TextGrid must have one tier {name!r}, got {[own for own, _ in tiers]} in {path}"
        )
    if found[0] is None:
        raise ValueError(f"the tier {name!r} must have intervals, got points in {path}")
    return [row for row in found[0] if row[2].strip()], end


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token.startswith('"'):
            yield token[1:-1].replace('""', '"')
        elif not token.startswith("!"):
            yield token


def _tier(tokens: Iterator[str]) -> tuple[str, list[Interval] | None]:
    """The name of a tier and its intervals; None: it has points."""
    kind, name = next(tokens), next(tokens)
    next(tokens), next(tokens)  # its times
    count = int(next(tokens))
    if kind == "IntervalTier":
        rows = [(float(next(tokens)), float(next(tokens)), next(tokens)) for _ in range(count)]
        return name, rows
    for _ in range(count):
        next(tokens), next(tokens)
    return name, None
