"""Sinkhorn-Knopp: soft assignments of samples to prototypes, all used equally often.

Cuturi, NIPS 2013, https://arxiv.org/abs/1306.0895, as in Caron et al., NeurIPS 2020,
https://arxiv.org/abs/2006.09882, section 3.1.
Reference code: facebookresearch/swav at 06b1b7c, main_swav.py, distributed_sinkhorn.

Deviations:
    range: computed on logarithms in float32 at least; the reference code exponentiates the
        scores, which overflows above 88 epsilon (in float16 above 11 epsilon). Its divisions by
        the total, K and N cancel and are omitted.

Shapes: n local and N global samples, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.checks import check_positive, shapes
from sslzoo.distributed import Rows, gather_rows, rank, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float = 0.05, iterations: int = 3, weight: Tensor | None = None
) -> Tensor:
    """Alternately normalize the sums over samples and over prototypes.

    Sums over samples are over all ranks. The last normalization is that of the samples: each row
    sums to 1.

    Args:
        scores: (..., n, K) of this rank's samples with the prototypes; leading dimensions are
            independent problems.
        epsilon: weight of the entropy; 0.05 in the code. With a smaller one the assignments are
            closer to one prototype per sample.
        iterations: number of iterations; 3 in the code.
        weight: (n,) weight of each sample in the sums, 0 excludes it; None: all are 1.

    Returns:
        (..., n, K) without gradient; rows of weight 0 are 0.

    Raises:
        ValueError: for other shapes, an epsilon that is not positive, or no iteration.
    """
    if scores.dim() < 2 or (weight is not None and weight.shape != scores.shape[-2:-1]):
        got = shapes(scores, weight)
        raise ValueError(f"scores must be (..., n, K) and weight (n,) or None, got {got}")
    check_positive("epsilon", epsilon)
    check_positive("iterations", iterations)
    with no_autocast(scores):
        logits = at_least_float32(scores) / epsilon
        mass = logits.new_zeros(()) if weight is None else weight.to(logits.dtype).log()[:, None]
        of_sample = of_prototype = mass
        for _ in range(iterations):
            of_prototype = -_global_logsumexp(logits + of_sample)  # (..., 1, K)
            of_sample = mass - (logits + of_prototype).logsumexp(-1, keepdim=True)  # (..., n, 1)
        return logits.add_(of_prototype).add_(of_sample).exp_()


def _global_logsumexp(x: Tensor) -> Tensor:
    """Log-sum-exp over the samples of all ranks. (..., n, K) -> (..., 1, K)."""
    own = x.logsumexp(-2, keepdim=True)
    if world_size() == 1:
        return own
    one_each = Rows((1,) * world_size(), rank(), world_size())
    return gather_rows(own[None], one_each).logsumexp(0)
