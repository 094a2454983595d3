"""Center: the running mean of the teacher's logits, against collapse in DINO.

Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294, section 3.1.
Reference code: facebookresearch/dino at 7c446df, main_dino.py, DINOLoss.update_center.

Deviations:
    time of the update: at `commit`, after the optimizer step, with all micro-batches of a gradient
        accumulation; the reference code updates at the end of the loss and has no accumulation.
    ranks: the mean over all rows, for any number per rank; the reference code divides by the
        number of ranks times the number of this rank's rows.

Shapes: K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.memory.base import Memory


class Center(Memory):
    """Update center <- momentum * center + (1 - momentum) * mean of the step's logits.

    Args:
        dim: K.
        momentum: m; 0.9 in the paper.

    Attributes:
        rows: (1, K), zero at the start.

    Raises:
        ValueError: for a dim below 1, or a momentum outside [0, 1).
    """

    rows: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        if dim < 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"dim must be at least 1 and momentum in [0, 1), got {dim} and {momentum}"
            )
        self.momentum = momentum
        self.register_buffer("rows", torch.zeros(1, dim))

    def read(self) -> Tensor:
        """The center before this step's update. (K,)."""
        return self.rows[0]

    @torch.no_grad()
    def stage(self, mean: Tensor, count: int | Tensor) -> None:
        """Stage a micro-batch's mean for the next commit.

        Args:
            mean: (K,) mean of its logits; detached here.
            count: number of rows that it is the mean of; it may be on the device. Steps without any
                row leave the center as it is.

        Raises:
            ValueError: for other shapes.
        """
        if mean.shape != self.rows.shape[1:]:
            raise ValueError(f"mean must be ({self.rows.shape[1]},), got {tuple(mean.shape)}")
        self._append(mean[None], mean.new_zeros(1, 1) + count)

    def _write(self, *columns: Tensor) -> None:
        means, counts = columns
        total = counts.sum()
        mean = (means * (counts / total.clamp(min=1))).sum(dim=0)
        weight = ((1 - self.momentum) * (total > 0)).to(self.rows.dtype)
        self.rows.lerp_(mean.to(self.rows.dtype), weight)

    def extra_repr(self) -> str:
        return f"dim={self.rows.shape[1]}, momentum={self.momentum}"
