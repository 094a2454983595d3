"""Queue: a ring buffer of the K newest keys.

He, Fan, Wu, Xie and Girshick, CVPR 2020, https://arxiv.org/abs/1911.05722, section 3.2.
Reference code: facebookresearch/moco at 78b69ca, moco/builder.py.

Deviations:
    layout: rows (K, D); the reference code keeps columns (D, K).
    size: any; the reference code requires a multiple of the global batch.
    time of the update: at `commit`, after the optimizer step; the reference code updates at the end
        of the forward pass. Only with gradient accumulation is a loss computed between the two.
    initial rows: the same distribution, from a generator of their own.

Shapes: K rows, D width, n local and N global rows of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_whole
from sslzoo.memory.base import Memory
from sslzoo.random import run_seed


class Queue(Memory):
    """First-in, first-out queue of (K, D) rows.

    Initial rows are normalized Gaussian vectors, equal on all ranks. If a step has more than K
    rows, the last K are kept.

    Args:
        size: K; 65536 in the paper.
        dim: D; 128 in the paper.
        seed: seed of the initial rows; None: that of the run.
        empty: whether the initial rows are zeros, so that `full` tells when all are filled (SwAV).

    Attributes:
        rows: (K, D).
        pointer: () int64, position of the oldest row, which is replaced next.

    Raises:
        ValueError: for a size or dim below 1.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, seed: int | None = None, empty: bool = False) -> None:
        super().__init__()
        check_whole("size of the queue", size, 1)
        check_whole("dim of the queue", dim, 1)
        generator = torch.Generator("cpu").manual_seed(run_seed() if seed is None else seed)
        rows = torch.zeros(size, dim, dtype=torch.float32)
        if not empty and not rows.is_meta:
            rows.normal_(generator=generator)
        self.register_buffer("rows", F.normalize(rows, dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def read(self) -> Tensor:
        """All rows in the order of the buffer, in float32 at least. (K, D)."""
        return self.rows.to(torch.promote_types(self.rows.dtype, torch.float32))

    @property
    def full(self) -> Tensor:
        """Whether all rows of an initially empty queue are filled. () bool, on the device."""
        return self.rows[-1].any()

    def stage(self, values: Tensor) -> None:
        """Stage a micro-batch's keys for the next commit.

        Args:
            values: (n, D) L2-normalized keys; detached here.

        Raises:
            ValueError: for other shapes.
        """
        dim = self.rows.shape[1]
        if values.dim() != 2 or values.shape[1] != dim:
            raise ValueError(f"values must be (n, {dim}), got {tuple(values.shape)}")
        self._append(values)

    def _write(self, *columns: Tensor) -> None:
        (values,) = columns
        size = len(self.rows)
        kept = values[-size:]
        first = self.pointer + (len(values) - len(kept))
        index = (first + torch.arange(len(kept), device=values.device)) % size
        self.rows.index_copy_(0, index, kept.to(self.rows.dtype))
        self.pointer.add_(len(values)).remainder_(size)

    def extra_repr(self) -> str:
        size, dim = self.rows.shape
        return f"size={size}, dim={dim}"
