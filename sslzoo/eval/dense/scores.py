"""Scores of a semantic segmentation: IoU per class, mIoU and pixel accuracy, over a whole set.

As mmsegmentation 0.27.0 computes them (core/evaluation/metrics.py): areas are added up over all
images before they are divided, pixels with the ignored label count nowhere, and a class that
appears neither in the labels nor in the predictions is left out of the mean.
Shapes: B images, H x W pixels, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from sslzoo.checks import shapes
from sslzoo.distributed import sum_over_ranks


class SegmentationScores(NamedTuple):
    """The scores of a set; absent classes are NaN.

    Attributes:
        miou: mean IoU over the classes that appear, in [0, 1].
        pixel_accuracy: fraction of labeled pixels that are right (aAcc).
        class_accuracy: mean over the classes that appear in the labels (mAcc).
        iou: (K,) float64 IoU per class.
        accuracy: (K,) float64 accuracy per class.
    """

    miou: float
    pixel_accuracy: float
    class_accuracy: float
    iou: Tensor
    accuracy: Tensor


def confusion(predicted: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count pixels by true and predicted class, (K, K) int64 with a row per true class.

    Args:
        predicted: (B, H, W) classes in 0..K-1.
        labels: (B, H, W) classes, or `ignore_index`.
        num_classes: K.
        ignore_index: the label of pixels that do not count.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != labels.shape:
        raise ValueError(
            f"predicted and labels must be (B, H, W) of one size, got {shapes(predicted, labels)}"
        )
    keep = labels != ignore_index
    return multiclass_confusion_matrix(
        predicted[keep], labels[keep].long(), num_classes, validate_args=False
    )


def scores_of(counts: Tensor) -> SegmentationScores:
    """Scores from the counts of `confusion`, added up over this rank's images; collective.

    The counts of all ranks are added as integers, so the scores do not depend on their number.

    Args:
        counts: (K, K) int64 of this rank.

    Raises:
        ValueError: no pixel of any rank has a label.
    """
    total = sum_over_ranks(counts).double().cpu()
    if not total.sum():
        raise ValueError("masks must have pixels with a class, got ignored pixels alone")
    right, truth, guess = total.diagonal(), total.sum(1), total.sum(0)
    iou, accuracy = right / (truth + guess - right), right / truth  # 0 / 0 is NaN
    return SegmentationScores(
        iou.nanmean().item(),
        (right.sum() / total.sum()).item(),
        accuracy.nanmean().item(),
        iou,
        accuracy,
    )
