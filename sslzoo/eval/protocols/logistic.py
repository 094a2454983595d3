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

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_at_least
from sslzoo.eval.linear import EVERY, checked_labels, standardize
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
    several = train_labels.ndim == 2
    if several:
        _check_several(train, train_labels, num_classes)
        labels = train_labels.to(train.device, torch.int64)
    else:
        labels = checked_labels("logistic regression", train, train_labels, num_classes)
    weights = sorted(l2, reverse=True)
    check_at_least("the number of L2 weights", len(weights), 1)
    loss: Callable[[Tensor, Tensor], Tensor] = _binary if several else F.cross_entropy
    quality: Callable[[Tensor, Tensor], float] = mean_average_precision if several else top_k
    train, test = train.float(), test.float()
    with torch.enable_grad(), torch.autocast(train.device.type, enabled=False):
        best = weights[0]
        if len(weights) > 1 and len(train) >= 2 * EVERY:
            held = _held_out(labels)
            x, x_held = standardize(train[~held], train[held])
            start = x.new_zeros(x.shape[1] + 1, num_classes)
            most = -1.0
            for weight in weights:  # from strong to weak, each fit starting from the last solution
                start = _fit(x, labels[~held], weight, start, max_steps, loss)
                found = quality(_logits(x_held, start), labels[held])
                if found > most:
                    best, most = weight, found
        x, asked = standardize(train, test)
        zeros = x.new_zeros(x.shape[1] + 1, num_classes)
        return _logits(asked, _fit(x, labels, best, zeros, max_steps, loss)).detach()


def _check_several(train: Tensor, labels: Tensor, num_classes: int) -> None:
    if labels.shape != (len(train), num_classes):
        raise ValueError(
            f"labels must be (n, C) = {(len(train), num_classes)}, got {tuple(labels.shape)}"
        )
    if not train.isfinite().all():
        raise ValueError("features must be finite, got NaN or infinity")


def _held_out(labels: Tensor) -> Tensor:
    """Mask of every fifth sample, in the order of the classes (of the first one, if several)."""
    key = labels if labels.ndim == 1 else (labels > 0).int().argmax(1)
    position = torch.empty_like(key)
    position[key.argsort(stable=True)] = torch.arange(len(key), device=key.device)
    return position % EVERY == EVERY - 1


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(weight[-1], x, weight[:-1])


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over classes of the mean binary cross-entropy over each class's counted samples."""
    counted = (labels >= 0).to(logits)
    each = F.binary_cross_entropy_with_logits(
        logits, (labels > 0).to(logits), weight=counted, reduction="none"
    )
    return (each.sum(0) / counted.sum(0).clamp_min(1)).sum()


def _fit(
    x: Tensor,
    labels: Tensor,
    l2: float,
    start: Tensor,
    max_steps: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Minimize loss + l2 / 2 * |W|^2 over W (D, C) and a free bias, the last row."""
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=max_steps,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(_logits(x, weight), labels) + 0.5 * l2 * weight[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach()
