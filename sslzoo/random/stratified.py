"""Keyed, stratified splits, the same on every machine and for every run seed."""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.checks import check_interval
from sslzoo.random.keys import run_keys


def stratified_split(
    labels: Tensor | None, num_samples: int, fraction: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Split rows in two parts, with the same fraction of each class.

    Args:
        labels: (N,) int64 classes; None or float targets: all rows form one class.
        num_samples: N.
        fraction: fraction of each class in the second part, rounded; a class with at least two
            samples has at least one in each part.
        seed: seed of the split; it is not the run's, so that runs of several seeds share a split.

    Returns:
        The ascending rows of the first and of the second part, int64.

    Raises:
        ValueError: the fraction is not in (0, 1).
    """
    check_interval("fraction", fraction, 0, 1, "()")
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


def rows_per_class(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Draw `count` rows of each class, or all of a smaller one: ascending int64.

    Args:
        labels: (N,) int64 classes.
        count: rows per class.
        seed: seed of the draw; it is not the run's, so that runs of several seeds share it.
    """
    order = run_keys(seed, "rows per class").permutation("rows", len(labels))[0].to(labels.device)
    chosen = [order[labels[order] == label][:count] for label in labels.unique()]
    return torch.cat(chosen).sort().values
