"""Figures of scores: top-k and per-class accuracy, and average precision for several labels.

Shapes: n samples, C classes.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from sslzoo.checks import check_choice

Rule = Literal["area", "eleven_points"]


def top_k(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Fraction of samples whose class is among the k best; of tied classes the lowest wins.

    Args:
        scores: (n, C).
        labels: (n,) int64 classes.
        k: number of best classes.

    Example:
        >>> import torch
        >>> top_k(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([0, 1]), k=1)
        0.5
    """
    return (_rank(scores, labels) < k).double().mean().item()


def mean_per_class(scores: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of each class's top-1 accuracy.

    The figure of SimCLR's transfer table for Pets, Flowers, Caltech-101 and Aircraft.
    Shapes: scores (n, C), labels (n,).
    """
    right = (_rank(scores, labels) < 1).double()
    return torch.stack([right[labels == label].mean() for label in labels.unique()]).mean().item()


def classification(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1`, `top5` (of more than five classes) and `per_class`. Shapes: (n, C), (n,)."""
    found = {"top1": top_k(scores, labels)}
    if scores.shape[1] > 5:
        found["top5"] = top_k(scores, labels, 5)
    return found | {"per_class": mean_per_class(scores, labels)}


def _rank(scores: Tensor, labels: Tensor) -> Tensor:
    own = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(1)


def average_precision(scores: Tensor, relevant: Tensor, rule: Rule = "area") -> float:
    """Average precision of PASCAL VOC; samples of equal score keep their order.

    Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, section 4.2, and
    VOCevalcls.m and VOCap.m of its development kits.

    Args:
        scores: (n,).
        relevant: (n,) bool.
        rule: "area": the area under the curve of interpolated precision (2010 and later);
            "eleven_points": the mean of the interpolated precision at recall 0, 0.1, ..., 1 (2007).

    Raises:
        ValueError: no sample is relevant.

    Example:
        >>> import torch
        >>> scores = torch.tensor([0.9, 0.8, 0.7])
        >>> average_precision(scores, torch.tensor([True, False, True]))
        0.8333333333333333
    """
    check_choice("rule", rule, get_args(Rule))
    if not relevant.any():
        raise ValueError("average precision needs at least one relevant sample, got none")
    hit = relevant[scores.argsort(descending=True, stable=True)].double()
    found = hit.cumsum(0)
    precision = found / torch.arange(1, len(hit) + 1, device=hit.device)
    best = precision.flip(0).cummax(0).values.flip(0)  # the best at this recall or a higher one
    if rule == "area":
        return ((best * hit).sum() / found[-1]).item()
    total = 0.0
    for tenth in range(11):
        reached = 10 * found >= tenth * found[-1]
        total += best[reached][0].item()
    return total / 11


def mean_average_precision(scores: Tensor, labels: Tensor, rule: Rule = "area") -> float:
    """Mean of `class_precisions`. Shapes: scores (n, C), labels (n, C)."""
    values = class_precisions(scores, labels, rule).values()
    return sum(values) / len(values)


def class_precisions(scores: Tensor, labels: Tensor, rule: Rule = "area") -> dict[int, float]:
    """Average precision of each class that occurs, by its number.

    Args:
        scores: (n, C).
        labels: (n, C): 1 present, 0 absent, -1 not counted (VOC's difficult objects).
        rule: see `average_precision`.

    Raises:
        ValueError: no class occurs.
    """
    values = {}
    for number, (score, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        counted = label >= 0
        if (label > 0).any():
            values[number] = average_precision(score[counted], label[counted] > 0, rule)
    if not values:
        raise ValueError("mAP needs a class with at least one sample, got none")
    return values
