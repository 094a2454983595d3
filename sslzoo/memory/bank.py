"""Memory bank: one row per training sample, a moving average of its features.

Wu, Xiong, Yu and Lin, CVPR 2018, https://arxiv.org/abs/1805.01978, section 3.2.
Reference code: zhirongw/lemniscate.pytorch, lib/NCEAverage.py and LinearAverage.py.

Deviations:
    time of the update: at `commit`, after the optimizer step; the reference code updates in the
        backward pass, from the same features and the same old rows.
    initial rows: the same distribution, from a generator of their own.

Shapes: M samples, D width, n local and N global rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.distributed import gather_rows, row_layout
from sslzoo.memory.base import Memory, last_of_each
from sslzoo.random import Keys, run_seed


class MemoryBank(Memory):
    """Bank of (M, D) rows, updated as normalize(momentum * row + (1 - momentum) * feature).

    Initial rows are uniform in (-s, s) with s = 1 / sqrt(D / 3), of expected norm 1 but not
    normalized, and equal on all ranks.

    Args:
        size: M, the number of training samples.
        dim: D; 128 in the paper.
        dtype: type of the rows; bfloat16 halves the memory.
        momentum: weight of the old row; 0.5 in the reference code, 0 with the paper's proximal
            term.
        seed: seed of the initial rows; None: that of the run.

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
            raise ValueError(f"size and dim must be at least 1, got ({size}, {dim})")
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
        """The samples' rows, in float32 at least. (n,) int64 -> (n, D)."""
        rows = self.rows[index]
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def sample(self, index: Tensor, keys: Keys, num_negatives: int) -> Tensor:
        """Positions of each sample's own row, then of uniform draws with replacement.

        Args:
            index: (n,) int64, the samples.
            keys: (n,), of this step.
            num_negatives: K.

        Returns:
            (n, 1 + K) int64.
        """
        negatives = keys.integers("negatives", len(self.rows), num_negatives)
        return torch.cat([index[:, None], negatives], dim=1)

    def stage(self, index: Tensor, values: Tensor) -> None:
        """Stage a micro-batch's features for the next commit.

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
        """Set rows to the given values: for recomputing the whole bank.

        Every rank calls it equally often, with its own rows; n may differ and may be 0.

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
        """Write rows; if a sample occurs more than once, its last row is written."""
        self.rows[index] = values[last_of_each(index)].to(self.rows.dtype)

    def _check(self, index: Tensor, values: Tensor) -> None:
        expected = (len(index), self.rows.shape[1])
        if index.dim() != 1 or tuple(values.shape) != expected:
            got = f"{tuple(index.shape)} and {tuple(values.shape)}"
            raise ValueError(f"index must be (n,) and values {expected}, got {got}")

    def extra_repr(self) -> str:
        size, dim = self.rows.shape
        return f"size={size}, dim={dim}, dtype={self.rows.dtype}, momentum={self.momentum}"
