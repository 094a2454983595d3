"""Memory bank: one row for every training sample, moved by its features with momentum.

Wu, Xiong, Yu and Lin, CVPR 2018, https://arxiv.org/abs/1805.01978, section 3.2.
Reference code: zhirongw/lemniscate.pytorch, lib/NCEAverage.py and LinearAverage.py.

Deviations:
    time of the update: at `commit`, after the optimizer step; the reference code's is in the
        backward, of the same features and the same old rows.
    initial rows: the same distribution from our own generator.

Shapes: M samples, D width, n local and N global rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.distributed import gather_rows, row_layout
from sslzoo.memory.base import Memory, last_of_each
from sslzoo.random import run_seed


class MemoryBank(Memory):
    """(M, D) rows; row i is normalize(momentum * old + (1 - momentum) * feature of sample i).

    The rows begin uniform in (-s, s), s = 1 / sqrt(D / 3), of expected norm 1 and not
    normalized, and equal on all ranks.

    Args:
        size: M, the number of training samples.
        dim: D, the paper's 128.
        dtype: of the rows; bfloat16 halves the memory.
        momentum: share of the old row; the reference code has 0.5, the paper's proximal mode 0.
        seed: of the initial rows; None takes the run's.

    Raises:
        ValueError: for a size or dim below 1, or a momentum outside 0..1.
    """

    rows: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        momentum: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a bank has at least one row and column, got ({size}, {dim})")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in 0..1, got {momentum}")
        self.momentum = momentum
        generator = torch.Generator("cpu").manual_seed(run_seed() if seed is None else seed)
        limit = (3 / dim) ** 0.5
        rows = torch.empty(size, dim, dtype=torch.float32)
        if not rows.is_meta:
            rows.uniform_(-limit, limit, generator=generator)
        self.register_buffer("rows", rows.to(dtype))

    def read(self, index: Tensor) -> Tensor:
        """The samples' rows, (n, D) in float32 at least. Shapes: index (n,) int64."""
        rows = self.rows[index]
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def stage(self, index: Tensor, values: Tensor) -> None:
        """Keep a micro-batch's features for the next commit.

        Args:
            index: (n,) int64, the samples.
            values: (n, D) L2-normalized features; detached here.

        Raises:
            ValueError: for other shapes.
        """
        self._check(index, values)
        self._append(index, values)

    def _write(self, *columns: Tensor) -> None:
        index, values = columns
        old = self.read(index)
        mixed = self.momentum * old + (1 - self.momentum) * values.to(old.dtype)
        self._put(index, F.normalize(mixed, dim=1))

    @torch.no_grad()
    def overwrite(self, index: Tensor, values: Tensor) -> None:
        """Set rows to the values given, as they are: for a recompute of the whole bank.

        Every rank calls it, equally often, with its own rows; n may differ and may be 0.

        Args:
            index: (n,) int64, the samples.
            values: (n, D).

        Raises:
            ValueError: for other shapes.
        """
        self._check(index, values)
        layout = row_layout(len(index))
        self._put(gather_rows(index, layout), gather_rows(values, layout))

    def _put(self, index: Tensor, values: Tensor) -> None:
        """Write rows; of several for one sample the last one wins, on every device."""
        self.rows[index] = values[last_of_each(index)].to(self.rows.dtype)

    def _check(self, index: Tensor, values: Tensor) -> None:
        wanted = (len(index), self.rows.shape[1])
        if index.dim() != 1 or tuple(values.shape) != wanted:
            got = f"{tuple(index.shape)} and {tuple(values.shape)}"
            raise ValueError(f"index (n,) and values {wanted} wanted, got {got}")

    def extra_repr(self) -> str:
        size, dim = self.rows.shape
        return f"size={size}, dim={dim}, dtype={self.rows.dtype}, momentum={self.momentum}"
