"""AMDIM's NCE: a feature of one view against the locations of the other view.

Bachman, Hjelm and Buchwalter, NeurIPS 2019, https://arxiv.org/abs/1906.00910, section 3.4.
Reference code: Philip-Bachman/amdim-public, commit 8754ae1, costs.py.

Deviations: none. Under the code's DataParallel, too, the negatives come from the whole batch.

Shapes: n local images, N global images, S locations of a target map, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_positive, shapes
from sslzoo.distributed import Rows, gather, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.positives import own_pairs


def amdim_nce(source: Tensor, target: Tensor, clip: float = 20.0) -> tuple[Tensor, Tensor]:
    """Cross entropy of each own location among all other images' locations; score penalty.

    Scores are dot products divided by the square root of D, then clip * tanh(score / clip).

    Args:
        source: (n, D) vectors of one view.
        target: (n, D, S) locations of the other view, image i that of source's row i.
        clip: bound c of a score; 20 in the code.

    Returns:
        Two scalars whose means over ranks are those of the global batch: the cross entropy, and
        the mean square of all scores before clipping, which the code adds with the weight 0.05.

    Raises:
        ValueError: for other shapes, a clip that is not positive, or a batch of one image.
    """
    if source.dim() != 2 or target.dim() != 3 or source.shape != target.shape[:2]:
        got = shapes(source, target)
        raise ValueError(f"source must be (n, D) and target (n, D, S), got {got}")
    check_positive("clip", clip)
    with no_autocast(source):
        rows = row_layout(len(source))
        if rows.total < 2:
            raise ValueError("the global batch must have at least 2 images (for negatives), got 1")
        log_softmax, _, raw = location_scores(source, target, clip, rows)
        mean = world_size() / (rows.total * target.shape[2])
        return -log_softmax.sum() * mean, raw.square().sum() * (mean / rows.total)


def location_scores(
    source: Tensor, target: Tensor, clip: float, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """Own locations' log softmax and clipped scores (n, S); raw scores (n, N, S)."""
    source, target = at_least_float32(source), at_least_float32(target)
    keys = gather(target, rows).transpose(1, 2).flatten(0, 1)  # (N S, D)
    raw = (source / source.shape[1] ** 0.5 @ keys.T).unflatten(1, (rows.total, -1))
    clipped = clip * (raw / clip).tanh()
    positive = clipped.diagonal(rows.start, 0, 1).T  # (n, S)
    own = own_pairs(rows, raw.device)[:, :, None]  # (n, N, 1)
    negatives = clipped.masked_fill(own, -torch.inf).flatten(1)
    norm = negatives.logsumexp(1, keepdim=True)
    return F.logsigmoid(positive - norm.expand_as(positive)), positive, raw
