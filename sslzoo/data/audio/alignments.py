"""Alignments: which phone is spoken when in a recording, from a table, .PHN or .TextGrid files.

A table (.csv, .tsv) has the columns clip, start, end and phone, with times in seconds; inside the
folder of the recordings its name ends in .alignments.csv or .alignments.tsv. A .PHN file of TIMIT
lies beside its recording, and has one line "start end phone" per phone, in samples; so does a
.TextGrid file of Praat, as forced aligners write it, with a tier of phones.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.data.audio.sound_files import soundfile
from sslzoo.data.audio.text_grid import read_tier
from sslzoo.data.audio.units import APART
from sslzoo.text_file import read_text

COLUMNS = ("clip", "start", "end", "phone")
PHN = "phn"
TEXT_GRID = "textgrid"
_TIER = "phones"  # as the Montreal Forced Aligner calls it
_ROUNDING = 0.02  # seconds by which an end may exceed the recording


class Alignments(NamedTuple):
    """Aligned phones of recordings.

    Attributes:
        phones: C names, sorted.
        segments: per recording (S, 3) int64: first sample, sample after the last, and phone.
    """

    phones: list[str]
    segments: dict[str, np.ndarray]


class _Segment(NamedTuple):
    start: float  # seconds
    end: float
    phone: str


def read_alignments(
    source: str, root: Path, listed: Sequence[str], seconds: Mapping[str, float], rate: int
) -> Alignments:
    """Read the phones of all recordings.

    Args:
        source: a table, in `root` or anywhere; "phn" for a .PHN file beside each recording; or
            "textgrid" for a .TextGrid file, of which "textgrid:NAME" reads another tier than
            "phones".
        root: folder that a table's clips are relative to. A clip may also be given without its
            extension, or by its file name alone if that is unique.
        listed: all recordings; a table may have phones of those that are not read.
        seconds: duration of each recording that is read.
        rate: samples per second of the result.

    Raises:
        ValueError: there is no such file; a clip is unknown or has no phones; a phone ends before
            it begins, overlaps another one, or exceeds its recording; or a TextGrid is of another
            duration. A warning counts recordings whose phones end before half of them.
    """
    kind, _, tier = source.partition(":")
    if source.lower().lstrip(".") == PHN:
        found = {path: _read_phn(path) for path in seconds}
    elif kind.lower().lstrip(".") == TEXT_GRID:
        found = {path: _read_grid(path, tier or _TIER, seconds[path]) for path in seconds}
    else:
        found = _read_table(source, root, listed)
    phones = sorted({segment.phone for path in seconds for segment in found.get(path, [])})
    number = {phone: i for i, phone in enumerate(phones)}
    lacking = [path for path in seconds if not found.get(path)]
    if lacking:
        raise ValueError(
            f"every recording must have aligned phones, got none for {len(lacking)} of "
            f"{len(seconds)}, the first is {lacking[0]}"
        )
    segments = {}
    for path, duration in seconds.items():
        rows = sorted(found.get(path, []))
        _check(path, rows, duration)
        segments[path] = np.array(
            [
                (round(row.start * rate), round(min(row.end, duration) * rate), number[row.phone])
                for row in rows
            ],
            dtype=np.int64,
        )
    _warn_of_early_ends(found, seconds)
    return Alignments(phones, segments)


def _warn_of_early_ends(found: Mapping[str, list[_Segment]], seconds: Mapping[str, float]) -> None:
    """Count recordings whose second half has no phone, as with times of another clip or unit."""
    ends = {path: max(row.end for row in found[path]) for path in seconds}
    early = [path for path, duration in seconds.items() if ends[path] < duration / 2]
    if early:
        first = early[0]
        rank_zero_warn(
            f"phones should reach the end of their recording, got {len(early)} of {len(seconds)} "
            f"recordings whose phones end before half of it, the first is {first} with "
            f"{ends[first]:g} of {seconds[first]:g} s; is this the right clip, and the right unit?"
        )


def _check(path: str, rows: Sequence[_Segment], duration: float) -> None:
    before = 0.0
    for row in rows:
        if not 0 <= row.start < row.end:
            raise ValueError(
                f"a phone must begin at 0 s or later and end after that, got {_told(row)} in {path}"
            )
        if row.start < before - 1e-6:
            raise ValueError(
                f"phones must not overlap, got {_told(row)} after one that ends at {before:g} s in "
                f"{path}"
            )
        if row.end > duration + _ROUNDING or row.start >= duration:
            raise ValueError(
                f"phones must end within the recording's {duration:g} s, got {_told(row)} in {path}"
            )
        before = row.end


def _told(row: _Segment) -> str:
    return f"{row.phone!r} from {row.start:g} to {row.end:g} s"


def _beside(path: str, *suffixes: str) -> Path:
    """The file beside a recording that differs in its suffix."""
    files = [Path(path).with_suffix(suffix) for suffix in suffixes]
    file = next((name for name in files if name.is_file()), None)
    if file is None:
        raise ValueError(
            f"every recording must have a {suffixes[0]} file beside it, got none for {path}"
        )
    return file


def _read_grid(path: str, tier: str, duration: float) -> list[_Segment]:
    file = _beside(path, ".TextGrid", ".textgrid", ".textGrid")
    rows, end = read_tier(file, tier)
    if not abs(end - duration) <= APART:
        raise ValueError(
            f"a TextGrid must be of its recording's {duration:g} s, got {end:g} s in {file}"
        )
    return [_Segment(*row) for row in rows]


def _read_phn(path: str) -> list[_Segment]:
    file = _beside(path, ".PHN", ".phn")
    rate = soundfile().info(path).samplerate
    lines = enumerate(read_text(file).splitlines(), 1)
    rows = [
        _segment(words[:2], " ".join(words[2:]), f"line {number} of {file}", "samples")
        for number, words in ((i, line.split()) for i, line in lines)
        if words
    ]
    return [_Segment(row.start / rate, row.end / rate, row.phone) for row in rows]


def _read_table(source: str, root: Path, paths: Sequence[str]) -> dict[str, list[_Segment]]:
    file = next((p for p in (root / source, Path(source).expanduser()) if p.is_file()), None)
    delimiter = {".csv": ",", ".tsv": "\t"}.get(Path(source).suffix.lower())
    if file is None or delimiter is None:
        raise ValueError(
            "alignments must be a .csv or .tsv file that exists, or 'phn' or 'textgrid' for such "
            f"files beside the recordings, got {source!r}"
        )
    known = _names(root, paths)
    rows = csv.DictReader(read_text(file).splitlines(), delimiter=delimiter)
    lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if lacking:
        raise ValueError(
            f"alignments must have the columns {list(COLUMNS)}, got {rows.fieldnames} in {file}"
        )
    found: dict[str, list[_Segment]] = {}
    for row in rows:
        where = f"line {rows.line_num} of {file}"
        clip = (row["clip"] or "").strip()
        owners = known.get(clip, set())
        if len(owners) != 1:
            got = f"{clip!r}, which is the name of {len(owners)}" if owners else repr(clip)
            raise ValueError(f"clip must be a recording below {root}, got {got} ({where})")
        segment = _segment([row["start"], row["end"]], row["phone"] or "", where, "seconds")
        found.setdefault(next(iter(owners)), []).append(segment)
    return found


def _names(root: Path, paths: Sequence[str]) -> dict[str, set[str]]:
    """The recordings that a clip of a table may mean; a whole relative path goes first."""
    exact: dict[str, set[str]] = {}
    loose: dict[str, set[str]] = {}
    for path in paths:
        relative = Path(os.path.relpath(path, root))
        for name in {relative.as_posix(), relative.with_suffix("").as_posix()}:
            exact.setdefault(name, set()).add(path)
        for name in {relative.name, relative.stem}:
            loose.setdefault(name, set()).add(path)
    return loose | exact


def _segment(times: Iterable[str | None], phone: str, where: str, unit: str) -> _Segment:
    given = list(times)
    try:
        start, end = (float(value or "") for value in given)
    except ValueError:
        raise ValueError(
            f"start and end must be numbers of {unit}, got {given} ({where})"
        ) from None
    if not phone.strip():
        raise ValueError(f"every segment must have a phone, got none ({where})")
    return _Segment(start, end, phone.strip())
