"""DCL: NT-Xent without the positive in the denominator; DCLW also weights the positives.

Yeh, Hong, Hsu, Liu, Chen and LeCun, Decoupled Contrastive Learning, ECCV 2022,
https://arxiv.org/abs/2110.06848, equations 5 and 6.
Reference code: raminnakhli/Decoupled-Contrastive-Learning, loss/dcl.py (a reimplementation).

Deviations:
    value: the mean over the 2N anchors; the paper sums over them, the reference code adds the
        means of the two directions, which is twice ours.
    mask: the anchor and its positive are excluded from the negatives; the reference code adds
        log(1e-45) = -103 to their logits, which has the same effect unless T is tiny.
    weight: 2 - N softmax(cosine / sigma) over the N pairs of the global batch, with gradient, as
        in the paper; later versions of the reference code lack the factor N.

Shapes: n local pairs, N global pairs, M = 2N rows, D width. The M x M similarities are never kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslzoo.checks import check_positive, check_same_shape
from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.layers.precision import l2_normalize, no_autocast
from sslzoo.losses.blockwise import RowBlocks


def dcl(z1: Tensor, z2: Tensor, temperature: float, sigma: float | None = None) -> Tensor:
    """Mean over anchors of logsumexp(the 2N - 2 negatives) - w * positive.

    Args:
        z1: (n, D) first views' projections; L2-normalized here (squared norm at least 1e-12).
        z2: (n, D) second views' projections, row i the positive of z1's row i.
        temperature: divides the cosines; 0.1 in the paper (reported).
        sigma: None for DCL, whose weights w are 1; 0.5 in the paper's DCLW, which gives distant
            pairs larger weights of mean 1.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, a temperature or sigma that is not positive, or a global
            batch of one pair, which has no negatives.
    """
    check_same_shape("z1 and z2", z1, z2)
    check_positive("temperature", temperature)
    if sigma is not None:
        check_positive("sigma", sigma)
    with no_autocast(z1):
        z = l2_normalize(torch.stack([z1, z2], dim=1), eps=1e-6)  # (n, 2, D)
        rows = row_layout(len(z))
        if rows.total < 2:
            raise ValueError(
                f"the global batch must have at least 2 pairs (for negatives), got {rows.total}"
            )
        cosine = (z[:, 0] * z[:, 1]).sum(dim=1)  # (n,)
        weighted = cosine
        if sigma is not None:
            p = (gather(cosine, rows) / sigma).softmax(dim=0)[rows.own]
            weighted = (2 - rows.total * p) * cosine
        keys = gather(z, rows).flatten(0, 1)  # (M, D): rows 2i and 2i + 1 are a pair
        negatives = _negatives(RowBlocks(z.flatten(0, 1), keys), 2 * rows.start, temperature)
        positives = 2 * weighted.sum() / temperature
        return (negatives - positives) * (world_size() / (2 * rows.total))


def _negatives(blocks: RowBlocks, first: int, temperature: float) -> Tensor:
    """Sum over anchors of the log-sum-exp of their negatives."""
    anchors = blocks.anchors
    total = anchors.new_zeros(())
    for rows in blocks.slices:
        own = torch.arange(first + rows.start, first + rows.stop, device=anchors.device)[:, None]
        logits = blocks.dots(rows) / temperature
        logits.scatter_(1, torch.cat([own, own ^ 1], dim=1), -math.inf)
        norm = logits.logsumexp(dim=1, keepdim=True)
        total = total + norm.sum()
        blocks.add_slope(rows, (logits - norm).exp_() / temperature)
    return blocks.total(total)
