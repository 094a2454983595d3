"""Metrics: the title, the unit and the normal course of each logged metric."""

from __future__ import annotations

import re
from typing import NamedTuple


class Description(NamedTuple):
    """A metric for readers: title, unit of its axis, and one sentence on what is normal."""

    title: str
    unit: str
    normal: str


_RISES = "Normal: it rises fast, then flattens."
_KNOWN = (
    (
        "train/loss",
        *("Training loss", "loss"),
        "Normal: it falls fast, then slowly; with a momentum encoder it may rise at first.",
    ),
    (
        "train/lr|lr-.*",
        *("Learning rate", "learning rate"),
        "Normal: it rises during the warm-up, then follows the schedule.",
    ),
    (
        "train/samples_per_second",
        *("Training speed", "samples per second"),
        "Normal: it is constant after the first epoch; dips are evaluations or slow data loading.",
    ),
    (
        "train/memory_mb",
        *("Memory in use", "MB"),
        "Normal: it is constant after the first epoch; steady growth is a leak.",
    ),
    (
        r"val/knn_top(\d+)_k(\d+)_t(.+)",
        *("kNN top-{0} accuracy (k {1}, T {2})", "fraction correct"),
        f"{_RISES} A fall points to a collapse or too high a learning rate.",
    ),
    (r"val/linear_top(\d+)", "Linear probe top-{0} accuracy", "fraction correct", _RISES),
    (r"val/probe_top(\d+)", "Online probe top-{0} accuracy", "fraction correct", _RISES),
    (r"val/spearman_(.+)", "Similarity on {0}", "Spearman correlation", _RISES),
    (
        "val/effective_rank",
        *("Effective rank of the features", "dimensions"),
        "Normal: tens and more; near 1 the features have collapsed.",
    ),
    (
        "val/feature_std",
        *("Standard deviation of the normalized features", "standard deviation"),
        "Normal: near 1 / √D for D dimensions; near 0 the features have collapsed.",
    ),
    (
        "val/effective_prototypes",
        *("Prototypes in use", "prototypes"),
        "Normal: several and more; near 1 the assignments have collapsed.",
    ),
)


def describe(name: str) -> Description:
    """Describe a logged metric; one that is not known keeps its name."""
    for pattern, title, unit, normal in _KNOWN:
        found = re.fullmatch(pattern, name)
        if found:
            return Description(title.format(*found.groups()), unit, normal)
    return Description(name, "value", "Logged by the run; no normal course is known for it.")


def order(name: str) -> tuple[int, str]:
    """Sort key of a metric: known ones in the order of the list, then the others by name."""
    places = [n for n, (pattern, *_) in enumerate(_KNOWN) if re.fullmatch(pattern, name)]
    return (places[0] if places else len(_KNOWN), name)
