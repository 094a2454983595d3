"""Who is who: which rows of the global batch show the same thing.

Shapes: n local samples, N global ones, V views of each; M = V N rows, sample by sample.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.distributed import Rows, gather_rows


class Identity(NamedTuple):
    """Identities of the anchors and of all rows; equal numbers show the same thing.

    Args:
        own: (V n,) of this rank's rows, the anchors.
        every: (M,) of all rows.
        first: place of the first anchor among the M.
    """

    own: Tensor
    every: Tensor
    first: int

    def same(self, rows: slice) -> Tensor:
        """Which keys show what the anchor shows, itself left out. (b, M) bool."""
        same = self.own[rows, None] == self.every
        same.diagonal(self.first + rows.start).fill_(False)
        return same

    def other(self, rows: slice) -> Tensor:
        """Which keys show something else. (b, M) bool."""
        return self.own[rows, None] != self.every

    def counts(self) -> tuple[Tensor, Tensor]:
        """Ordered pairs of the global batch that are the same and that are not, without loops."""
        ordered = self.every.sort().values
        left = torch.searchsorted(ordered, self.every)
        alike = (torch.searchsorted(ordered, self.every, right=True) - left).sum()
        num_rows = len(self.every)
        return alike - num_rows, num_rows * num_rows - alike


def identity(z: Tensor, label: Tensor | None, rows: Rows) -> Identity:
    """Identities by label, or, where there is none, every sample is its own.

    Args:
        z: (n, V, D), for its shape and device.
        label: (n,) integers, or None.
        rows: from `row_layout(n)`.

    Raises:
        ValueError: for labels that are not (n,), or for a single view.
    """
    if z.dim() != 3 or z.shape[1] < 2:
        raise ValueError(f"(n, V, D) of at least two views wanted, got {tuple(z.shape)}")
    if label is None:
        samples = torch.arange(rows.total, device=z.device)
    elif label.shape == z.shape[:1]:
        samples = gather_rows(label, rows)
    else:
        raise ValueError(f"labels of shape ({len(z)},) wanted, got {tuple(label.shape)}")
    num_views = z.shape[1]
    every = samples.repeat_interleave(num_views)
    first = rows.start * num_views
    return Identity(every[first : first + len(z) * num_views], every, first)
