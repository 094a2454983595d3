"""Samples that are too short for a frame of an encoder: found before any is embedded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def too_short(module: Any, lengths: Tensor) -> list[int]:
    """Rows of the sequences that an encoder makes no frame of.

    Args:
        module: the encoder, with `num_frames` of lengths (B,), or a module that has it as
            `backbone`; nothing is too short for others.
        lengths: (N,) int64 lengths of what the encoder is given.
    """
    count = getattr(getattr(module, "backbone", module), "num_frames", None)
    return (count(lengths) < 1).nonzero()[:, 0].tolist() if callable(count) else []


def told_short(
    module: Any,
    noun: str,
    sets: Mapping[str, Any],
    rows: Mapping[str, list[int]],
    name: Callable[[Any, int], str],
) -> str:
    """Say how many samples of each set are too short, and which is the first.

    Args:
        module: the encoder.
        noun: what the samples are.
        sets: the sets by name.
        rows: `too_short` of each set that has such samples.
        name: called with a set and a row, says which sample it is and how long.
    """
    encoder = type(getattr(module, "backbone", module)).__name__
    counts = " and ".join(f"{len(own)} of {len(sets[key])} ({key})" for key, own in rows.items())
    first = next(iter(rows))
    return (
        f"{noun} must be long enough for a frame of {encoder}, got {counts} that are not, the "
        f"first is {name(sets[first], rows[first][0])}"
    )
