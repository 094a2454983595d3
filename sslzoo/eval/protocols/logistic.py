"""Logistic regression by L-BFGS with a sweep of the L2 weight, for one label or several.

Kornblith, Shlens and Le, Do Better ImageNet Models Transfer Better?, CVPR 2019,
https://arxiv.org/abs/1805.08974, and SimCLR (https://arxiv.org/abs/2002.05709, appendix B.8.1): 45
weights, evenly spaced by their logarithm from 1e-6 to 1e5, chosen on held-out training samples;
then a fit to all training samples.

Deviations:
    1. Features are standardized by the training set, so that one range of weights fits any encoder.
    2. The held-out samples are every fifth of each class; the papers have the data sets' own
       validation sets.

Shapes: n training and m test samples, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.eval.linear import checked_labels, regress
from sslzoo.eval.protocols.accuracy import mean_average_precision, top_k

SWEEP = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))  # SimCLR, appendix B.8.1


def logistic_scores(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    num_classes: int,
    l2: Sequence[float] = SWEEP,
    max_steps: int = 100,
) -> Tensor:
    """Scores of the test set by a logistic regression on standardized features.

    Args:
        train: (n, D) features of all ranks.
        train_labels: (n,) classes; or (n, C) with 1 present, 0 absent, -1 not counted, for one
            binary regression per class.
        test: (m, D).
        num_classes: C.
        l2: weights of |W|^2 / 2 beside the mean loss; the best on the held-out samples by top-1
            accuracy (mAP for several labels) is used, the larger of tied ones.
        max_steps: L-BFGS steps per fit.

    Returns:
        (m, C) logits.

    Raises:
        ValueError: labels that do not fit the features or classes; NaN or infinity.
    """
    given = test, num_classes, l2, max_steps
    if train_labels.ndim == 2:
        _check_several(train, train_labels, num_classes)
        labels = train_labels.to(train.device, torch.int64)
        return regress(train, labels, *given, _binary, mean_average_precision)
    labels = checked_labels("logistic regression", train, train_labels, num_classes)
    return regress(train, labels, *given, F.cross_entropy, top_k)


def _check_several(train: Tensor, labels: Tensor, num_classes: int) -> None:
    if labels.shape != (len(train), num_classes):
        raise ValueError(
            f"labels must be (n, C) = {(len(train), num_classes)}, got {tuple(labels.shape)}"
        )
    if not train.isfinite().all():
        raise ValueError("features must be finite, got NaN or infinity")


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over classes of the mean binary cross-entropy over each class's counted samples."""
    counted = (labels >= 0).to(logits)
    each = F.binary_cross_entropy_with_logits(
        logits, (labels > 0).to(logits), weight=counted, reduction="none"
    )
    return (each.sum(0) / counted.sum(0).clamp_min(1)).sum()
