"""InvaSpread: a view is recognized as its instance, and no other view is.

Ye, Zhang, Yuen and Chang, CVPR 2019, https://arxiv.org/abs/1904.03436, equations 3 to 7.
Reference code: mangye16/Unsupervised_Embedding_Learning, BatchAverage.py, commit 29de398.

Deviations:
    saturation: 1 - P is formed from the other keys' probabilities, so that log(1 - P) is finite
        where P rounds to 1; the reference code takes log(0) there.
    roles: both views are anchors and keys, as in the reference code; the paper recognizes the
        augmented view among the originals.

Shapes: n local pairs, N global pairs, M = 2N rows, D width. The M x M similarities never exist as
a whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslzoo.distributed import gather_rows, row_layout, world_size
from sslzoo.losses.blockwise import RowBlocks
from sslzoo.losses.precision import at_least_float32, no_autocast


def invaspread(f1: Tensor, f2: Tensor, temperature: float, negative_weight: float = 1.0) -> Tensor:
    """Mean over the M anchors of -log P(partner) - m sum over the others of log(1 - P(other)).

    P(j) = exp(s_j / T) / D with D = exp(s_partner / T) + m sum over the others of exp(s / T);
    an anchor is no key of its own. Keys are constants: only an anchor's role has a gradient.

    Args:
        f1: (n, D) first views' features, L2-normalized by the caller.
        f2: (n, D) second views' features, row i beside f1's row i.
        temperature: T; the paper has 0.1.
        negative_weight: m, at least 1 (below it a probability could exceed 1); 1 in the paper.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, a temperature that is not positive, or m below 1.
    """
    if f1.dim() != 2 or f1.shape != f2.shape:
        shapes = f"{tuple(f1.shape)} and {tuple(f2.shape)}"
        raise ValueError(f"invaspread takes two (n, D) tensors of one shape, got {shapes}")
    if not temperature > 0:
        raise ValueError(f"invaspread divides by a temperature above 0, got {temperature}")
    if not negative_weight >= 1:
        raise ValueError(f"invaspread takes a negative_weight of at least 1, got {negative_weight}")
    with no_autocast(f1):
        f = at_least_float32(torch.stack([f1, f2], dim=1))  # (n, 2, D)
        rows = row_layout(len(f))
        keys = gather_rows(f, rows).flatten(0, 1)  # (M, D): rows 2i and 2i + 1 are a pair
        blocks = RowBlocks(f.flatten(0, 1), keys)
        scale = world_size() / (2 * rows.total)
        return _sum(blocks, 2 * rows.start, temperature, negative_weight) * scale


def _sum(blocks: RowBlocks, first: int, temperature: float, m: float) -> Tensor:
    """Sum over the anchors. A key's share is its part of D: m P for the others, P for the partner.

    The largest share is kept apart: it alone can be near 1, and 1 minus it is the sum of the rest.
    """
    anchors = blocks.anchors
    total = anchors.new_zeros(())
    log_surplus = anchors.new_full((), math.log(m - 1) if m > 1 else -math.inf)
    lowest = torch.finfo(anchors.dtype).min
    for rows in blocks.slices:
        place = torch.arange(first + rows.start, first + rows.stop, device=anchors.device)[:, None]
        partner = place ^ 1
        logits = blocks.dots(rows) / temperature
        own = logits.gather(1, partner)
        logits = logits.add_(math.log(m)).scatter_(1, partner, own)
        logits.scatter_(1, place, -math.inf)
        top, where = logits.max(dim=1, keepdim=True)
        logits.scatter_(1, where, -math.inf)
        rest = logits.logsumexp(dim=1, keepdim=True).clamp_min(lowest)  # a lone pair has no rest
        norm = torch.logaddexp(top, rest)  # log D
        top_is_partner = where == partner
        top_share, log_rest_share = (top - norm).exp(), rest - norm
        log_doubt = torch.logaddexp(log_rest_share, log_surplus)  # log of m (1 - P), P the top's
        of_rest = logits.sub_(rest).exp_()
        share = of_rest * log_rest_share.exp()
        odds = (share / (m - share)).scatter_(1, partner, 0)  # P / (1 - P)
        spread = share.div_(-m).log1p_().scatter_(1, partner, 0).sum(dim=1, keepdim=True)
        spread += (log_doubt - math.log(m)).masked_fill_(top_is_partner, 0)
        total = total + (norm - own - m * spread).sum()

        pressure = (m * top_share * (log_rest_share - log_doubt).exp()).masked_fill_(
            top_is_partner, 0
        )
        weighed = m * odds.sum(dim=1, keepdim=True)
        slope = m * odds + of_rest * (log_rest_share.exp() * (1 - weighed) - pressure)
        at_top = torch.where(
            top_is_partner,
            -log_rest_share.exp() - top_share * weighed,
            top_share * (1 - weighed) + pressure,
        )
        slope.scatter_(1, where, at_top)
        slope.scatter_add_(1, partner, top_is_partner.to(slope.dtype) - 1)
        blocks.add_slope(rows, slope / temperature)
    return blocks.total(total)
