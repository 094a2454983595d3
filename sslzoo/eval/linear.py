"""Linear probe on cached features: multinomial logistic regression, fitted to convergence.

This is the "linear evaluation" of SimCLR's transfer table and of CLIP: L-BFGS on frozen features,
with an L2 penalty. It is deterministic: it starts at zero and does not shuffle.
Shapes: n samples, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_at_least, check_labeled

EVERY = 5  # every fifth sample is held out to choose the L2 weight
_SMALL = 1 << 18  # numbers of features below which one thread fits as fast as several


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


def regress(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    num_classes: int,
    l2: Sequence[float],
    max_steps: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    quality: Callable[[Tensor, Tensor], float],
) -> Tensor:
    """Logits of the test set by a regression on standardized features.

    If there are several L2 weights, the best on every fifth training sample, held out, is chosen
    (the larger of tied ones); the regression is then fitted to the whole training set.

    Args:
        train: (n, D).
        labels: (n,) classes, or (n, C) with 1 for each class that a sample has.
        test: (m, D).
        num_classes: C.
        l2: weights of |W|^2 / 2 beside the loss.
        max_steps: L-BFGS steps per fit.
        loss: of logits and labels.
        quality: of logits and labels, by which the weight is chosen.

    Returns:
        (m, C).
    """
    train, test = train.float(), test.float()
    weights = sorted(l2, reverse=True)
    check_at_least("the number of L2 weights", len(weights), 1)
    gradients, in_full = torch.enable_grad(), torch.autocast(train.device.type, enabled=False)
    with gradients, in_full, _few_threads(train):
        best, most = weights[0], -1.0
        start = zeros = train.new_zeros(train.shape[1] + 1, num_classes)
        if len(weights) > 1 and len(train) >= 2 * EVERY:
            held = _held_out(labels)
            x, x_held = standardize(train[~held], train[held])
            for weight in weights:  # from strong to weak, each fit starting from the last solution
                start = _fit(x, labels[~held], weight, start, max_steps, loss)
                found = quality(_logits(x_held, start), labels[held])
                if found > most:
                    best, most = weight, found
        x, asked = standardize(train, test)
        return _logits(asked, _fit(x, labels, best, zeros, max_steps, loss))


@contextmanager
def _few_threads(train: Tensor) -> Iterator[None]:
    """Fit a small set with one thread.

    L-BFGS is thousands of small operations, after each of which threads wait for each other: 0.06 s
    of a quiet machine with two cores, but 2.5 s where other processes hold these.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if train.numel() < _SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _held_out(labels: Tensor) -> Tensor:
    """Mask of every fifth sample in the order of the classes (of the first one, if several)."""
    key = labels if labels.ndim == 1 else (labels > 0).int().argmax(1)
    position = torch.empty_like(key)
    position[key.argsort(stable=True)] = torch.arange(len(key), device=key.device)
    return position % EVERY == EVERY - 1


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(weight[-1], x, weight[:-1])


def _fit(
    x: Tensor,
    labels: Tensor,
    l2: float,
    start: Tensor,
    max_steps: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Minimize loss + l2 / 2 * |W|^2 over W (D, C) and a free bias, the last row. (D + 1, C)."""
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


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def checked_labels(name: str, features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the labels as int64 on the features' device, or raise a ValueError."""
    check_labeled(f"{name}: features and labels", features, labels)
    check_at_least(f"{name}: the number of samples", len(features), 1)
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
    weights = [l2] if isinstance(l2, (int, float)) else l2
    given = train, train_labels, test, num_classes, weights, max_steps
    return _accuracy(regress(*given, F.cross_entropy, _accuracy), test_labels)
