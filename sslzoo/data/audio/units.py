"""Units: one small integer per frame of each recording, such as clusters of its features.

A file of units is an npz with `names`, the recordings' paths relative to the file's folder;
`lengths`, units per recording; `units`, all units in that order; `rate`, units per second; and
`num_units`. `sslzoo units` writes it; it holds no code.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslzoo.atomic_write import atomic_write

APART = 0.1  # seconds between the ends of units and recording, as fairseq tolerates
_KEYS = ("names", "lengths", "units", "rate", "num_units")


@dataclass(frozen=True)
class UnitTable:
    """The units of recordings.

    Args:
        units: of all recordings, one after the other, int32.
        starts: (N + 1,) position of each recording's first unit.
        rate: units per second.
        num_units: number of different units.
    """

    units: np.ndarray
    starts: np.ndarray
    rate: float
    num_units: int

    def at(self, index: int, samples: np.ndarray, rate: int) -> np.ndarray:
        """Units that begin nearest to samples of a recording, -1 outside; (n,) int64.

        Args:
            index: the recording.
            samples: (n,) int64 positions; negative ones are outside.
            rate: samples per second.
        """
        own = self.units[self.starts[index] : self.starts[index + 1]]
        position = np.floor(samples * (self.rate / rate) + 0.5).astype(np.int64)
        inside = (samples >= 0) & (position < len(own))
        if not len(own):
            return np.full(len(samples), -1)
        return np.where(inside, own[np.clip(position, 0, len(own) - 1)], -1).astype(np.int64)


def write_units(
    path: str | Path, names: Sequence[str], units: Iterable[Tensor], rate: float, num_units: int
) -> None:
    """Write a file of units, atomically.

    Args:
        path: the npz file.
        names: each recording's path.
        units: (U,) integers of each recording.
        rate: units per second.
        num_units: number of different units.
    """
    target = Path(path).expanduser().resolve()
    rows = [np.asarray(row, dtype=np.int32) for row in units]
    relative = [Path(os.path.relpath(name, target.parent)).as_posix() for name in names]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        names=np.array(relative),
        lengths=np.array([len(row) for row in rows]),
        units=np.concatenate(rows),
        rate=np.array(float(rate)),
        num_units=np.array(num_units),
    )
    atomic_write(target, content.getvalue())


def read_units(path: str | Path, recordings: Sequence[str]) -> UnitTable:
    """Read the units of some recordings, in their order.

    Args:
        path: file of `sslzoo units`.
        recordings: their paths.

    Raises:
        ValueError: the file does not exist or is malformed, or lacks a recording.
    """
    source = Path(path).expanduser().resolve()
    if not source.is_file():
        raise ValueError(f"units must be a file that `sslzoo units` wrote, got {str(path)!r}")
    try:
        with np.load(source, allow_pickle=False) as arrays:
            names, lengths, units, rate, num_units = (arrays[key] for key in _KEYS)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(
            f"{str(path)!r} must be a file that `sslzoo units` wrote, got one that cannot be read: "
            f"{error}"
        ) from None
    least, most = (int(units.min()), int(units.max())) if len(units) else (0, -1)
    if len(names) != len(lengths) or lengths.sum() != len(units) or least < 0 or most >= num_units:
        raise ValueError(
            f"{str(path)!r} must have units in 0..{int(num_units) - 1} for all of its names, got "
            f"{len(names)} names, {len(lengths)} lengths, and {len(units)} units in {least}..{most}"
        )
    begins = np.concatenate([[0], lengths.cumsum()])
    number = {name: i for i, name in enumerate(names.tolist())}
    wanted = [Path(os.path.relpath(p, source.parent)).as_posix() for p in recordings]
    lacking = [name for name in wanted if name not in number]
    if lacking:
        raise ValueError(
            f"{str(path)!r} must have units of all recordings, got none of {len(lacking)}, such as "
            f"{lacking[:3]}; run sslzoo units again"
        )
    rows = [units[begins[number[name]] : begins[number[name] + 1]] for name in wanted]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return UnitTable(np.concatenate(rows), starts, float(rate), int(num_units))


def check_lengths(
    path: str, table: UnitTable, recordings: Sequence[str], seconds: np.ndarray
) -> None:
    """Refuse units of recordings that have other lengths than these.

    Args:
        path: the file of the units.
        table: its units of the recordings.
        recordings: their paths.
        seconds: (N,) their lengths.

    Raises:
        ValueError: names a recording.
    """
    lengths = np.diff(table.starts) / table.rate
    other = np.flatnonzero(np.abs(lengths - seconds) > APART + 1 / table.rate)
    if len(other):
        row = int(other[0])
        raise ValueError(
            f"units of {path!r} must be those of the recordings, got {len(other)} of other "
            f"lengths, such as {lengths[row]:.2f} s of units for {seconds[row]:.2f} s of "
            f"{recordings[row]}; run sslzoo units again"
        )


def window_units(tables: Sequence[UnitTable], index: int, samples: np.ndarray, rate: int) -> Tensor:
    """Units of a window from its first sample on, -1 where it has none. (S, U) int64.

    Args:
        tables: S sets, of one rate.
        index: the recording.
        samples: (L,) the recording's sample at each position of the window; negative: padding.
        rate: samples per second.
    """
    step = rate / tables[0].rate
    count = int(np.ceil(len(samples) / step))
    at = np.minimum(np.floor(np.arange(count) * step + 1e-9).astype(np.int64), len(samples) - 1)
    return torch.from_numpy(np.stack([table.at(index, samples[at], rate) for table in tables]))
