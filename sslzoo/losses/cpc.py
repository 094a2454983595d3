"""CPC's InfoNCE: a prediction picks its own target among targets drawn from the whole batch.

Van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
https://arxiv.org/abs/1807.03748, equation 4. The paper's authors published no code.
Reference code: loeweX/Greedy_InfoMax, commit 22d17e4 (images and audio), and
facebookresearch/CPC_audio, commit b98a1bd.

Deviations:
    1. The exact log softmax; the code for images takes log(softmax + 1e-11), which bounds a row's
       loss at 25.3 and is the same number below about 20.
    2. Negatives are drawn by the caller, keyed, from the global batch; the code's come from the
       process's generator and from the batch of one GPU.

Shapes: n local and N global samples, P places of a sample that are predicted from, M predictions a
place, S targets a sample, K negatives of a place, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.distributed import Rows, gather, row_layout, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast


def cpc_info_nce(
    predictions: Tensor,
    targets: Tensor,
    positives: Tensor,
    negatives: Tensor,
    scale: float = 1.0,
    rows: Rows | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy of each prediction's target among it and K others.

    A score is the dot product times `scale`: 1 in the paper, 1 / D in CPC_audio. The predictions
    of a place share its negatives.

    Args:
        predictions: (n, P, D), or (n, P, M, D).
        targets: (n, S, D) of the same samples; they may be predicted from, and have gradients.
        positives: (P,) or (P, M) int64, which of the sample's own S targets each prediction is of.
        negatives: (n, P, K) int64, in 0..N S - 1: target s of global sample i is i S + s. The
            own target may be among them, as in the code.
        scale: of the scores.
        rows: from `row_layout(n)`, to exchange the counts once for several losses of a step.
        weights: as `positives`, of each prediction in the sum over those of a sample; None: a mean.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or no negatives.
    """
    _check(predictions, targets, positives, negatives, weights)
    if predictions.dim() == 3:
        predictions, positives = predictions[:, :, None], positives[:, None]
        weights = None if weights is None else weights[:, None]
    with no_autocast(predictions):
        anchors, own = at_least_float32(predictions), at_least_float32(targets)
        rows = rows or row_layout(len(own))
        every = gather(own, rows).flatten(0, 1)  # (N S, D)
        positive = (anchors * own[:, positives]).sum(3, keepdim=True)  # (n, P, M, 1)
        negative = _scores_of(negatives, anchors, every)  # (n, P, M, K)
        scores = torch.cat([positive, negative], dim=3) * scale
        losses = scores.logsumexp(3) - scores[..., 0]  # (n, P, M)
        loss = losses.mean((1, 2)) if weights is None else (losses * weights).sum((1, 2))
        return loss.sum() * (world_size() / rows.total)


def _scores_of(drawn: Tensor, anchors: Tensor, every: Tensor) -> Tensor:
    """Dot products with the drawn targets, of the two ways the one that needs less memory.

    One product with all targets, of which the drawn ones are picked, moves a row of M N S numbers
    for each place; copies of the drawn targets one of K D, at a hundredth of a product's speed.

    Args:
        drawn: (n, P, K) rows of `every`.
        anchors: (n, P, M, D).
        every: (N S, D).

    Returns:
        (n, P, M, K).
    """
    num_targets, dim = every.shape
    if anchors.shape[2] * num_targets <= drawn.shape[2] * dim:
        picked = drawn[:, :, None].expand(-1, -1, anchors.shape[2], -1)
        return (anchors @ every.T).gather(3, picked)
    return anchors @ F.embedding(drawn, every).mT  # its backward is one dense sum


def _check(
    predictions: Tensor,
    targets: Tensor,
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor | None,
) -> None:
    if (
        predictions.dim() not in (3, 4)
        or targets.dim() != 3
        or (len(predictions), predictions.shape[-1]) != (len(targets), targets.shape[2])
        or positives.shape != predictions.shape[1:-1]
        or negatives.dim() != 3
        or negatives.shape[:2] != predictions.shape[:2]
        or negatives.shape[2] < 1
        or (weights is not None and weights.shape != positives.shape)
    ):
        parts = (predictions, targets, positives, negatives, weights)
        got = [None if x is None else tuple(x.shape) for x in parts]
        raise ValueError(
            "predictions (n, P, D) or (n, P, M, D), targets (n, S, D), positives (P,) or (P, M), "
            "negatives (n, P, K) with K at least 1 and weights as positives or None wanted, "
            f"got {got}"
        )
