"""InvaSpread: each view is classified as its own instance, and no other view is.

Ye, Zhang, Yuen and Chang, CVPR 2019, https://arxiv.org/abs/1904.03436, equations 3 to 7.
Reference code: mangye16/Unsupervised_Embedding_Learning, BatchAverage.py, commit 29de398.

Deviations:
    saturation: 1 - P is formed from the other keys' probabilities, so that log(1 - P) is finite
        where P rounds to 1; the reference code takes log(0) there.
    roles: both views are anchors and keys, as in the reference code; in the paper the augmented
        view is the anchor and the originals are the keys.

Shapes: n local pairs, N global pairs, M = 2N rows, D width. The M x M similarities are never kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslzoo.checks import check_positive, check_same_shape
from sslzoo.distributed import gather_rows, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import RowBlocks


def invaspread(f1: Tensor, f2: Tensor, temperature: float, negative_weight: float = 1.0) -> Tensor:
    """Mean over anchors of -log P(positive) - m sum_negatives log(1 - P(negative)).

    P(j) = exp(s_j / T) / D with D = exp(s_positive / T) + m sum over negatives of exp(s / T).
    Keys are constants: the gradient is that of the anchors alone.

    Args:
        f1: (n, D) first views' features, L2-normalized by the caller.
        f2: (n, D) second views' features, row i the positive of f1's row i.
        temperature: T; 0.1 in the paper.
        negative_weight: m, at least 1 (below it a probability could exceed 1); 1 in the paper.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, a temperature that is not positive, or m below 1.
    """
    check_same_shape("f1 and f2", f1, f2)
    check_positive("temperature", temperature)
    if not negative_weight >= 1:
        raise ValueError(f"negative_weight must be at least 1, got {negative_weight}")
    with no_autocast(f1):
        f = at_least_float32(torch.stack([f1, f2], dim=1))  # (n, 2, D)
        rows = row_layout(len(f))
        keys = gather_rows(f, rows).flatten(0, 1)  # (M, D): rows 2i and 2i + 1 are a pair
        blocks = RowBlocks(f.flatten(0, 1), keys)
        scale = world_size() / (2 * rows.total)
        return _sum(blocks, 2 * rows.start, temperature, negative_weight) * scale


def _sum(blocks: RowBlocks, first: int, temperature: float, m: float) -> Tensor:
    """Sum over the anchors, with its gradient, from each key's share of D.

    The share is m P for negatives and P for the positive. The largest share is handled apart: it
    alone can be near 1, and 1 minus it is the sum of the others.
    """
    anchors = blocks.anchors
    total = anchors.new_zeros(())
    log_surplus = anchors.new_full((), math.log(m - 1) if m > 1 else -math.inf)
    lowest = torch.finfo(anchors.dtype).min
    for rows in blocks.slices:
        index = torch.arange(first + rows.start, first + rows.stop, device=anchors.device)[:, None]
        positive = index ^ 1
        logits = blocks.dots(rows) / temperature
        own = logits.gather(1, positive)
        logits = logits.add_(math.log(m)).scatter_(1, positive, own)
        logits.scatter_(1, index, -math.inf)
        top, where = logits.max(dim=1, keepdim=True)
        logits.scatter_(1, where, -math.inf)
        rest = logits.logsumexp(dim=1, keepdim=True).clamp_min(
            lowest
        )  # a single pair has no negatives
        norm = torch.logaddexp(top, rest)  # log D
        top_is_positive = where == positive
        top_share, log_rest_share = (top - norm).exp(), rest - norm
        log_doubt = torch.logaddexp(log_rest_share, log_surplus)  # log of m (1 - P), P the top's
        of_rest = logits.sub_(rest).exp_()
        share = of_rest * log_rest_share.exp()
        odds = (share / (m - share)).scatter_(1, positive, 0)  # P / (1 - P)
        spread = share.div_(-m).log1p_().scatter_(1, positive, 0).sum(dim=1, keepdim=True)
        spread += (log_doubt - math.log(m)).masked_fill_(top_is_positive, 0)
        total = total + (norm - own - m * spread).sum()

        pressure = (m * top_share * (log_rest_share - log_doubt).exp()).masked_fill_(
            top_is_positive, 0
        )
        weighted = m * odds.sum(dim=1, keepdim=True)
        slope = m * odds + of_rest * (log_rest_share.exp() * (1 - weighted) - pressure)
        at_top = torch.where(
            top_is_positive,
            -log_rest_share.exp() - top_share * weighted,
            top_share * (1 - weighted) + pressure,
        )
        slope.scatter_(1, where, at_top)
        slope.scatter_add_(1, positive, top_is_positive.to(slope.dtype) - 1)
        blocks.add_slope(rows, slope / temperature)
    return blocks.total(total)
