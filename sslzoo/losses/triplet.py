"""Triplet loss: an anchor is closer to its positive than to negatives, by a margin.

Schroff, Kalenichenko and Philbin, FaceNet, CVPR 2015, https://arxiv.org/abs/1503.03832, equation
3 and section 3.2 (semi-hard). Hermans, Beyer and Leibe, In Defense of the Triplet Loss, 2017,
https://arxiv.org/abs/1703.07737 (batch-all, batch-hard, soft margin).
Reference code: adambielski/siamese-triplet, losses.py and utils.py, commit 0c719f9.

Deviations:
    semi-hard: each positive pair has its nearest semi-hard negative, as in FaceNet; the reference
        code draws one of the semi-hard negatives.
    mean: over triplets of the global batch; FaceNet sums, the reference code averages over the
        triplets that it selected, and over a dummy triplet where there is none (0 here).

Shapes: n local samples, V views, D width, M = V N rows, b anchors per block. Neither the M x M
distances nor the triplets are kept: the loss is piecewise linear in the distances, and sorting a
block's rows gives the number of triplets that each distance is part of.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.distributed import gather, row_layout, sum_over_ranks, world_size
from sslzoo.layers.precision import l2_normalize, no_autocast
from sslzoo.losses.blockwise import MIN_DISTANCE, RowBlocks
from sslzoo.losses.checks import check_positive
from sslzoo.losses.positives import find_positives


class _Mined(NamedTuple):
    """Sum over a block's triplets, its derivative by the distances (b, M), and two counts."""

    value: Tensor
    slope: Tensor
    num_mined: Tensor
    num_nonzero: Tensor


def triplet(
    z: Tensor,
    label: Tensor | None = None,
    margin: float | None = 0.2,
    mining: Literal["all", "hard", "semi_hard"] = "semi_hard",
    squared: bool = True,
    mean_over: Literal["all", "nonzero"] = "all",
) -> Tensor:
    """Mean of max(0, d(a, p) - d(a, n) + margin) over triplets (anchor, positive, negative).

    Mining: "all" selects every triplet; "hard" each anchor's farthest positive and nearest
    negative; "semi_hard" for each (anchor, positive) the nearest negative that is farther than the
    positive, if it is within the margin.

    Args:
        z: (n, V, D) projections of V >= 2 views; L2-normalized here (squared norm at least
            1e-12).
        label: (n,) integers, equal for positives; None: the views of one sample are positives.
        margin: in units of d; 0.2 in FaceNet. None: the soft margin log(1 + exp(d(a, p) -
            d(a, n))), for mining "hard" only.
        mining: which triplets are selected.
        squared: d is the squared Euclidean distance (FaceNet) or the distance (Hermans et al.).
        mean_over: all selected triplets, or those whose loss is not 0.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch; 0 without selected triplets.

    Raises:
        ValueError: for other shapes, names, or margins.
    """
    if mining not in ("all", "hard", "semi_hard") or mean_over not in ("all", "nonzero"):
        raise ValueError(
            "mining must be 'all', 'hard' or 'semi_hard' and mean_over 'all' or 'nonzero', got "
            f"{mining!r} and {mean_over!r}"
        )
    if margin is None and mining != "hard":
        raise ValueError(f"mining must be 'hard' for the soft margin None, got {mining!r}")
    if margin is not None:
        check_positive("margin", margin)
    with no_autocast(z):
        rows = row_layout(len(z))
        positives = find_positives(z, label, rows)
        z = l2_normalize(z, eps=1e-6)
        blocks = RowBlocks(z.flatten(0, 1), gather(z, rows).flatten(0, 1))
        total = z.new_zeros(())
        count = torch.zeros((), dtype=torch.int64, device=z.device)
        for part in blocks.slices:
            distance = blocks.distances(part)
            d = distance.square() if squared else distance
            same, other = positives.positive(part), positives.negative(part)
            mined = _mine(d, same, other, margin, mining)
            total = total + mined.value
            count = count + (mined.num_mined if mean_over == "all" else mined.num_nonzero)
            slope = mined.slope if squared else mined.slope / (2 * distance.clamp_min(MIN_DISTANCE))
            blocks.add_square_slope(part, slope)
        everywhere = sum_over_ranks(count).clamp_min(1).to(z.dtype)
        return blocks.total(total) * (world_size() / everywhere)


def _mine(d: Tensor, same: Tensor, other: Tensor, margin: float | None, mining: str) -> _Mined:
    if mining == "hard":
        return _hard(d, same, other, margin)
    assert margin is not None
    return _all(d, same, other, margin) if mining == "all" else _semi_hard(d, same, other, margin)


def _all(d: Tensor, same: Tensor, other: Tensor, margin: float) -> _Mined:
    reach = torch.where(same, d + margin, -math.inf)  # negatives closer than this count
    negative = torch.where(other, d, math.inf)
    nearer = torch.searchsorted(negative.sort(dim=1).values, reach)
    reached = d.shape[1] - torch.searchsorted(reach.sort(dim=1).values, negative, right=True)
    slope = (nearer - reached).to(d.dtype)
    nonzero = nearer.sum()
    mined = (same.sum(dim=1) * other.sum(dim=1)).sum()
    return _Mined((slope * d).sum() + margin * nonzero.to(d.dtype), slope, mined, nonzero)


def _hard(d: Tensor, same: Tensor, other: Tensor, margin: float | None) -> _Mined:
    far, positive = torch.where(same, d, -math.inf).max(dim=1, keepdim=True)
    near, negative = torch.where(other, d, math.inf).min(dim=1, keepdim=True)
    gap = far - near  # -inf for an anchor without negatives
    if margin is None:
        each, weight = F.softplus(gap), gap.sigmoid()
    else:
        each, weight = (gap + margin).clamp_min(0), (gap > -margin).to(d.dtype)
    slope = torch.zeros_like(d).scatter_(1, positive, weight).scatter_add_(1, negative, -weight)
    return _Mined(each.sum(), slope, (near < math.inf).sum(), (each > 0).sum())


def _semi_hard(d: Tensor, same: Tensor, other: Tensor, margin: float) -> _Mined:
    negative, order = torch.where(other, d, math.inf).sort(dim=1)
    beyond = torch.searchsorted(negative, d, right=True).clamp_max(d.shape[1] - 1)
    chosen = negative.gather(1, beyond)
    mined = same & (chosen > d) & (chosen < d + margin)
    weight = mined.to(d.dtype)
    slope = weight.scatter_add(1, order.gather(1, beyond), -weight)
    value = torch.where(mined, d - chosen + margin, 0).sum()
    return _Mined(value, slope, mined.sum(), mined.sum())
