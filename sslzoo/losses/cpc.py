"""CPC's InfoNCE: each prediction's own target against targets drawn from the batch.

Van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
https://arxiv.org/abs/1807.03748, equation 4. The paper's authors published no code.
Reference code: loeweX/Greedy_InfoMax, commit 22d17e4 (images and audio);
facebookresearch/CPC_audio, commit b98a1bd.

Deviations:
    1. The log softmax is exact; the code for images uses log(softmax + 1e-11), which bounds the
       loss of a prediction at 25.3 and agrees with ours below about 20.
    2. Negatives are keyed draws of the caller from the global batch; the code draws them from the
       process's generator and from the batch of one GPU.

Shapes: n local and N global samples, P contexts per sample, M predictions per context, S targets
per sample, K negatives per context, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.checks import shapes
from sslzoo.distributed import Rows, gather, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast


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

    A score is the dot product times `scale`. All predictions of a context share its negatives.

    Args:
        predictions: (n, P, D), or (n, P, M, D).
        targets: (n, S, D) of the same samples, with or without gradient.
        positives: (P,) or (P, M) int64, the positive of each prediction among the S targets of its
            own sample.
        negatives: (n, P, K) int64 in 0..N S - 1: target s of global sample i is i S + s. The
            positive may be among them, as in the code.
        scale: factor of the scores: 1 in the paper, 1 / D in CPC_audio.
        rows: from `row_layout(n)`, to exchange the counts once for several losses of a step.
        weights: shaped as `positives`, the weight of each prediction in the sum over the
            predictions of a sample; None: their mean.

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
        negative = _negative_scores(negatives, anchors, every)  # (n, P, M, K)
        scores = torch.cat([positive, negative], dim=3) * scale
        losses = scores.logsumexp(3) - scores[..., 0]  # (n, P, M)
        loss = losses.mean((1, 2)) if weights is None else (losses * weights).sum((1, 2))
        return loss.sum() * (world_size() / rows.total)


def _negative_scores(drawn: Tensor, anchors: Tensor, every: Tensor) -> Tensor:
    """Dot products with the drawn targets, by the way that needs less memory.

    A product with all targets, from which the drawn ones are picked, has M N S entries per context;
    copies of the drawn targets have K D, at a hundredth of the speed of a product.

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
    return anchors @ F.embedding(drawn, every).mT  # its backward pass is one dense sum


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
        raise ValueError(
            "predictions must be (n, P, D) or (n, P, M, D), targets (n, S, D), positives (P,) or "
            "(P, M), negatives (n, P, K) with K at least 1, weights shaped as positives or None; "
            f"got {shapes(predictions, targets, positives, negatives, weights)}"
        )
