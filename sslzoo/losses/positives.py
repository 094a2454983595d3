"""Positives of each anchor in the global batch.

Shapes: n local samples, N global ones, V views of each; M = V N rows, sample by sample.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.distributed import Rows, gather_rows


def own_pairs(rows: Rows, device: torch.device) -> Tensor:
    """True for the pairs of a local sample with itself. (n, N) bool."""
    samples = torch.arange(rows.total, device=device)
    return samples[rows.own, None] == samples


class Positives(NamedTuple):
    """Identities of the anchors and of all rows; rows of one identity are positives.

    Args:
        own: (V n,) identities of this rank's rows, the anchors.
        every: (M,) identities of all rows.
        first: position of the first anchor among the M rows.
    """

    own: Tensor
    every: Tensor
    first: int

    def positive(self, rows: slice) -> Tensor:
        """Which keys are positives of the anchors, themselves excluded. (b, M) bool."""
        same = self.own[rows, None] == self.every
        same.diagonal(self.first + rows.start).fill_(False)
        return same

    def negative(self, rows: slice) -> Tensor:
        """Which keys are negatives of the anchors. (b, M) bool."""
        return self.own[rows, None] != self.every

    def counts(self) -> tuple[Tensor, Tensor]:
        """Numbers of ordered positive and negative pairs in the global batch."""
        ordered = self.every.sort().values
        left = torch.searchsorted(ordered, self.every)
        same = (torch.searchsorted(ordered, self.every, right=True) - left).sum()
        num_rows = len(self.every)
        return same - num_rows, num_rows * num_rows - same


def find_positives(z: Tensor, label: Tensor | None, rows: Rows) -> Positives:
    """Positives by label, or, without labels, the views of one sample.

    Args:
        z: (n, V, D), for its shape and device.
        label: (n,) integers, or None.
        rows: from `row_layout(n)`.

    Raises:
        ValueError: for labels that are not (n,), or for a single view.
    """
    if z.dim() != 3 or z.shape[1] < 2:
        raise ValueError(f"z must be (n, V, D) with at least two views, got {tuple(z.shape)}")
    if label is None:
        samples = torch.arange(rows.total, device=z.device)
    elif label.shape == z.shape[:1]:
        samples = gather_rows(label, rows)
    else:
        raise ValueError(f"label must be ({len(z)},), one per sample, got {tuple(label.shape)}")
    num_views = z.shape[1]
    every = samples.repeat_interleave(num_views)
    first = rows.start * num_views
    return Positives(every[first : first + len(z) * num_views], every, first)
