"""DCL: NT-Xent without the positive in the denominator; DCLW weighs the positives too.

Yeh, Hong, Hsu, Liu, Chen and LeCun, Decoupled Contrastive Learning, ECCV 2022,
https://arxiv.org/abs/2110.06848, equations 5 and 6.
Reference code: raminnakhli/Decoupled-Contrastive-Learning, loss/dcl.py (a reimplementation).

Deviations:
    value: the mean over the 2N anchors; the paper sums over them, the reference code adds the
        means of the two directions, which is twice ours.
    mask: the anchor and its partner are left out of the negatives; the reference code adds
        log(1e-45) = -103 to their logits, which does the same unless T is tiny.
    weight: 2 - N softmax(cosine / sigma) over the N pairs of the global batch, with gradient, as
        in the paper; later versions of the reference code lack the factor N.

Shapes: n local pairs, N global pairs, M = 2N rows, D width. The M x M similarities never exist as
a whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.losses.blockwise import RowBlocks
from sslzoo.losses.precision import at_least_float32, no_autocast


def dcl(z1: Tensor, z2: Tensor, temperature: float, sigma: float | None = None) -> Tensor:
    """Mean over anchors of logsumexp(the 2N - 2 negatives) - w * partner.

    Args:
        z1: (n, D) first views' projections; L2-normalized here (squared norm at least 1e-12).
        z2: (n, D) second views' projections, row i beside z1's row i.
        temperature: divides the cosines; the paper has 0.1 (reported).
        sigma: None: w = 1, DCL; otherwise DCLW, 0.5 in the paper: pairs that are far from each
            other weigh more, the weights' mean is 1.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, a temperature or sigma that is not positive, or a global
            batch of one pair, which has no negatives.
    """
    if z1.dim() != 2 or z1.shape != z2.shape:
        shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ValueError(f"dcl takes two (n, D) tensors of one shape, got {shapes}")
    if not temperature > 0:
        raise ValueError(f"dcl divides by a temperature above 0, got {temperature}")
    if sigma is not None and not sigma > 0:
        raise ValueError(f"dcl takes a sigma above 0, or None, got {sigma}")
    with no_autocast(z1):
        z = F.normalize(at_least_float32(torch.stack([z1, z2], dim=1)), dim=-1, eps=1e-6)
        rows = row_layout(len(z))
        if rows.total < 2:
            raise ValueError(f"dcl wants a global batch of at least 2 pairs, got {rows.total}")
        cosine = (z[:, 0] * z[:, 1]).sum(dim=1)  # (n,)
        weighed = cosine
        if sigma is not None:
            share = (gather(cosine, rows) / sigma).softmax(dim=0)[rows.own]
            weighed = (2 - rows.total * share) * cosine
        keys = gather(z, rows).flatten(0, 1)  # (M, D): rows 2i and 2i + 1 are a pair
        negatives = _negatives(RowBlocks(z.flatten(0, 1), keys), 2 * rows.start, temperature)
        positives = 2 * weighed.sum() / temperature
        return (negatives - positives) * (world_size() / (2 * rows.total))


def _negatives(blocks: RowBlocks, first: int, temperature: float) -> Tensor:
    """Sum over anchors of the logsumexp of their negatives."""
    anchors = blocks.anchors
    total = anchors.new_zeros(())
    for rows in blocks.slices:
        place = torch.arange(first + rows.start, first + rows.stop, device=anchors.device)[:, None]
        logits = blocks.dots(rows) / temperature
        logits.scatter_(1, torch.cat([place, place ^ 1], dim=1), -math.inf)
        norm = logits.logsumexp(dim=1, keepdim=True)
        total = total + norm.sum()
        blocks.add_slope(rows, (logits - norm).exp_() / temperature)
    return blocks.total(total)
