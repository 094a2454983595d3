"""Linear probe on cached features: multinomial logistic regression, fitted to convergence.

This is the "linear evaluation" of SimCLR's transfer table and of CLIP: L-BFGS on frozen features,
with an L2 penalty. It is deterministic: it starts at zero and does not shuffle.
Shapes: n samples, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EVERY = 5  # every fifth sample is held out to choose the L2 weight


class _Standardize:
    """Standardization by the training set's mean and variance; constant dimensions become 0."""

    def __init__(self, features: Tensor) -> None:
        self.mean = features.mean(0)
        std = features.std(0, correction=0)
        scale = features.abs().amax(0).clamp_min(1e-12)
        self.inverse = torch.where(std > 1e-6 * scale, 1 / std.clamp_min(1e-30), 0.0)

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.inverse


def standardize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Standardize both sets by the training set's mean and variance. Shapes: (n, D), (m, D)."""
    by_train = _Standardize(train)
    return by_train(train), by_train(test)


def _fit(
    x: Tensor, labels: Tensor, num_classes: int, l2: float, start: Tensor, max_steps: int
) -> Tensor:
    """Minimize mean cross-entropy + l2 / 2 * |W|^2 over W (D, C) and a free bias.

    Args:
        x: (n, D) standardized.
        labels: (n,) int64.
        num_classes: C.
        l2: weight of the penalty.
        start: (D + 1, C) initial weights; the last row is the bias.
        max_steps: L-BFGS steps.

    Returns:
        (D + 1, C).
    """
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
        logits = torch.addmm(weight[-1], x, weight[:-1])
        loss = F.cross_entropy(logits, labels) + 0.5 * l2 * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach()


def _accuracy(x: Tensor, labels: Tensor, weight: Tensor) -> float:
    predicted = torch.addmm(weight[-1], x, weight[:-1]).argmax(1)
    return (predicted == labels).double().mean().item()


def checked_labels(name: str, features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the labels as int64 on the features' device, or raise a ValueError."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        raise ValueError(
            f"{name}: features must be (n, D) and labels (n,), "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError(f"{name}: features must be finite, got NaN or infinity")
    labels = labels.to(features.device, torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name}: labels must be in 0..{num_classes - 1}, got {low}..{high}")
    return labels


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    num_classes: int,
    l2: float | Sequence[float] = (1e-3, 1e-2, 1e-1),
    max_steps: int = 100,
) -> float:
    """Test accuracy of a logistic regression on standardized features.

    If there are several L2 weights, the best on every fifth training sample, held out, is chosen
    (the larger of tied ones); the classifier is then fitted to the whole training set. The test
    set is not used for the choice.

    Args:
        train: (n, D) features of the training set, of one rank or gathered.
        train_labels: (n,) any dtype.
        test: (m, D).
        test_labels: (m,).
        num_classes: C.
        l2: weight of |W|^2 / 2 beside the mean cross-entropy; scikit-learn's 1 / (C n).
        max_steps: L-BFGS steps per fit.

    Returns:
        Fraction in [0, 1].
    """
    train_labels = checked_labels("linear probe, training set", train, train_labels, num_classes)
    test_labels = checked_labels("linear probe, test set", test, test_labels, num_classes)
    train, test = train.float(), test.float()
    weights = sorted([l2] if isinstance(l2, (int, float)) else l2, reverse=True)
    start = train.new_zeros(train.shape[1] + 1, num_classes)
    with torch.enable_grad(), torch.autocast(train.device.type, enabled=False):
        best = weights[0]
        if len(weights) > 1 and len(train) >= 2 * EVERY:
            best = _choose(train, train_labels, num_classes, weights, start, max_steps)
        x, asked = standardize(train, test)
        weight = _fit(x, train_labels, num_classes, best, start, max_steps)
    return _accuracy(asked, test_labels, weight)


def _choose(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    weights: list[float],
    start: Tensor,
    max_steps: int,
) -> float:
    """Choose the L2 weight from a descending list by accuracy on the held-out fifth."""
    # Every fifth sample in class order, so that sorted data is split evenly too.
    position = torch.empty_like(labels)
    position[labels.argsort(stable=True)] = torch.arange(len(labels), device=labels.device)
    held = position % EVERY == EVERY - 1
    kept, kept_labels = features[~held], labels[~held]
    x, x_held = standardize(kept, features[held])
    best, best_accuracy = weights[0], -1.0
    for l2 in weights:  # from strong to weak, each fit starting from the last solution
        start = _fit(x, kept_labels, num_classes, l2, start, max_steps)
        accuracy = _accuracy(x_held, labels[held], start)
        if accuracy > best_accuracy:
            best, best_accuracy = l2, accuracy
    return best
