"""Center: the running mean of a teacher's logits, by which DINO keeps them from collapsing.

Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294, section 3.1.
Reference code: facebookresearch/dino at 7c446df, main_dino.py, DINOLoss.update_center.

Deviations:
    time of the update: at `commit`, after the optimizer step, with the rows of all micro-batches
        of an accumulation; the reference code has none, and updates at the end of the loss.
    ranks: the mean over all rows, whatever number each rank holds; the reference code divides by
        the number of ranks times this rank's.

Shapes: K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.memory.base import Memory


class Center(Memory):
    """center <- momentum * center + (1 - momentum) * mean of the step's logits, of all ranks.

    Args:
        dim: K.
        momentum: 0.9 in the paper.

    Attributes:
        rows: (1, K), zero at the start.

    Raises:
        ValueError: for a dim below 1, or a momentum outside [0, 1).
    """

    rows: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        if dim < 1 or not 0 <= momentum < 1:
            raise ValueError(f"a dim >= 1 and 0 <= momentum < 1 wanted, got {dim} and {momentum}")
        self.momentum = momentum
        self.register_buffer("rows", torch.zeros(1, dim))

    def read(self) -> Tensor:
        """The center, without what this step stages. (K,)."""
        return self.rows[0]

    @torch.no_grad()
    def stage(self, mean: Tensor, count: int) -> None:
        """Keep a micro-batch's mean for the next commit.

        Args:
            mean: (K,) of its logits; detached here.
            count: of the rows that it is the mean of.

        Raises:
            ValueError: for other shapes.
        """
        if mean.shape != self.rows.shape[1:]:
            raise ValueError(f"a mean ({self.rows.shape[1]},) wanted, got {tuple(mean.shape)}")
        self._append(mean[None], mean.new_full((1, 1), float(count)))

    def _write(self, *columns: Tensor) -> None:
        means, counts = columns
        mean = (means * (counts / counts.sum())).sum(dim=0)
        self.rows.lerp_(mean.to(self.rows.dtype), 1 - self.momentum)

    def extra_repr(self) -> str:
        return f"dim={self.rows.shape[1]}, momentum={self.momentum}"
