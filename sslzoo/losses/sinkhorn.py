"""Sinkhorn: soft assignments of samples to prototypes that use every prototype equally.

Cuturi, NIPS 2013, https://arxiv.org/abs/1306.0895, as in Caron et al., NeurIPS 2020,
https://arxiv.org/abs/2006.09882, section 3.1.
Reference code: facebookresearch/swav at 06b1b7c, main_swav.py, distributed_sinkhorn.

Deviations:
    range: computed on logarithms in float32 at least; the reference code exponentiates the
        scores as they are, which overflows past 88 epsilon (in float16 past 11 epsilon). The
        factors that it divides by on the way (the total, K, N) cancel and are left out.

Shapes: n local and N global samples, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.distributed import Rows, gather_rows, rank, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float = 0.05, iterations: int = 3, weight: Tensor | None = None
) -> Tensor:
    """Assignments after a number of rounds; each makes prototypes, then samples, sum alike.

    Prototypes sum over the samples of all ranks. Ends with the samples: each sums to 1.

    Args:
        scores: (..., n, K) of this rank's samples with the prototypes; several problems at once.
        epsilon: of the entropy; 0.05 in the code. Smaller is closer to one prototype a sample.
        iterations: rounds; 3 in the code.
        weight: (n,) how often each sample counts, 0 for one that is not there; None: once each.

    Returns:
        (..., n, K) without gradient; rows of weight 0 are 0.

    Raises:
        ValueError: for other shapes, an epsilon that is not positive, or no round.
    """
    if scores.dim() < 2 or (weight is not None and weight.shape != scores.shape[-2:-1]):
        shapes = f"{tuple(scores.shape)} and {None if weight is None else tuple(weight.shape)}"
        raise ValueError(f"scores (..., n, K) and weight (n,) or None wanted, got {shapes}")
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"epsilon above 0 and a round wanted, got {epsilon} and {iterations}")
    with no_autocast(scores):
        logits = at_least_float32(scores) / epsilon
        mass = logits.new_zeros(()) if weight is None else weight.to(logits.dtype).log()[:, None]
        of_sample = of_prototype = mass
        for _ in range(iterations):
            of_prototype = -_log_sum_of_all(logits + of_sample)  # (..., 1, K)
            of_sample = mass - (logits + of_prototype).logsumexp(-1, keepdim=True)  # (..., n, 1)
        return logits.add_(of_prototype).add_(of_sample).exp_()


def _log_sum_of_all(x: Tensor) -> Tensor:
    """Logarithm of the sum of exponentials over all ranks' rows. (..., n, K) -> (..., 1, K)."""
    own = x.logsumexp(-2, keepdim=True)
    if world_size() == 1:
        return own
    one_each = Rows((1,) * world_size(), rank(), world_size())
    return gather_rows(own[None], one_each).logsumexp(0)
