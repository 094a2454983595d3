"""Keyed, stratified choices of rows: the same on every machine and for every run seed."""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.random.keys import run_keys


def stratified_split(
    labels: Tensor | None, num_samples: int, fraction: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Part rows in two, the same fraction of each class.

    Args:
        labels: (N,) int64; None, or floats (a target): all rows are one class.
        num_samples: N.
        fraction: of each class that goes to the second part, rounded; with at least two samples a
            class has at least one in each.
        seed: of the choice; not the run's, so that runs of several seeds share one split.

    Returns:
        The rows of the first and of the second part, each ascending int64.

    Raises:
        ValueError: the fraction is not inside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"a split wants a fraction inside (0, 1), got {fraction}")
    if labels is None or labels.is_floating_point():
        labels = torch.zeros(num_samples, dtype=torch.int64)
    order = run_keys(seed, "split").permutation("rows", num_samples)[0]
    chosen = torch.zeros(num_samples, dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = order[labels[order] == label]
        count = round(fraction * len(rows))
        if len(rows) > 1:
            count = min(max(count, 1), len(rows) - 1)
        chosen[rows[:count]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]
