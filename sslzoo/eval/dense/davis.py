"""J & F of video object segmentation, as DAVIS 2017 computes them.

Pont-Tuset et al., The 2017 DAVIS Challenge, https://arxiv.org/abs/1704.00675.
Reference code: davisvideochallenge/davis2017-evaluation at 30b698a, task "semi-supervised".

Deviations: none.
Shapes: T frames of H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.distributed import gather_objects
from sslzoo.eval.dense.propagation import VOID


class ObjectScores(NamedTuple):
    """Scores of one object over the frames of its video.

    Attributes:
        j: (T,) region similarity, the IoU.
        f: (T,) contour accuracy.
    """

    j: Tensor
    f: Tensor


def region_similarity(truth: Tensor, found: Tensor) -> float:
    """J: the IoU of two bool masks (H, W); 1 if both are empty."""
    union = int((truth | found).sum())
    return 1.0 if not union else int((truth & found).sum()) / union


def contour(mask: Tensor) -> Tensor:
    """Boundary pixels of a bool mask (H, W): those that differ from the right, lower or both."""
    right, below = mask.clone(), mask.clone()
    right[:, :-1], below[:-1] = mask[:, 1:], mask[1:]
    both = right.clone()
    both[:-1] = right[1:]
    both[-1], both[:, -1] = right[-1], below[:, -1]
    return (mask ^ right) | (mask ^ below) | (mask ^ both)


def _dilated(mask: Tensor, radius: int) -> Tensor:
    """Dilate by a disk. Shapes: (H, W) bool."""
    offset = torch.arange(-radius, radius + 1)
    disk = (offset[:, None].square() + offset.square() <= radius * radius).float()
    grown = F.conv2d(mask[None, None].float(), disk[None, None], padding=radius)
    return grown[0, 0] > 0.5


def contour_accuracy(truth: Tensor, found: Tensor, tolerance: float = 0.008) -> float:
    """F: harmonic mean of precision and recall of the boundaries of two bool masks (H, W).

    Args:
        truth: the annotation.
        found: the segmentation.
        tolerance: distance at which boundaries match, in diagonals of the image.
    """
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    own, wanted = contour(found), contour(truth)
    num_own, num_wanted = int(own.sum()), int(wanted.sum())
    if not num_own or not num_wanted:
        return float(num_own == num_wanted)
    precision = int((own & _dilated(wanted, radius)).sum()) / num_own
    recall = int((wanted & _dilated(own, radius)).sum()) / num_wanted
    return 0.0 if not precision + recall else 2 * precision * recall / (precision + recall)


def score_video(truth: Sequence[Tensor], found: Sequence[Tensor]) -> list[ObjectScores]:
    """J and F of each object, without the first and the last frame, as the benchmark does.

    Args:
        truth: T annotations (H, W) int64: 0 is the background, and so is 255, since the benchmark's
            code ignores no pixel in this task.
        found: T segmentations of the same sizes.

    Returns:
        One per object of the first frame's annotation, in order.

    Raises:
        ValueError: there are fewer than three frames, or sizes differ.
    """
    if len(truth) != len(found) or len(truth) < 3:
        raise ValueError(
            f"a video must have at least 3 frames, each with a segmentation, got {len(truth)} and "
            f"{len(found)}"
        )
    for wanted, own in zip(truth, found, strict=True):
        if wanted.shape != own.shape:
            raise ValueError(f"masks must have one size, got {shapes(wanted, own)}")
    first = truth[0].where(truth[0] != VOID, 0)
    scores = []
    for number in range(1, int(first.max()) + 1):
        j, f = [], []
        for wanted, own in zip(truth[1:-1], found[1:-1], strict=True):
            j.append(region_similarity(wanted == number, own == number))
            f.append(contour_accuracy(wanted == number, own == number))
        scores.append(ObjectScores(torch.tensor(j), torch.tensor(f)))
    return scores


def davis_metrics(objects: Sequence[ObjectScores], prefix: str = "davis") -> dict[str, float]:
    """Means over all objects of all videos; collective, with the same result on every rank.

    Args:
        objects: those of this rank's videos.
        prefix: what the names of the metrics begin with.

    Returns:
        `davis_jf`, the mean of `davis_j` and `davis_f`; and the recalls `davis_j_recall` and
        `davis_f_recall`, the fraction of frames above 0.5.

    Raises:
        ValueError: no rank has an object.
    """
    own = [
        (part.double().mean().item(), (part > 0.5).double().mean().item())
        for each in objects
        for part in each
    ]
    rows = [row for part in gather_objects(own) for row in part]  # J and F alternate
    if not rows:
        raise ValueError("the videos must have objects, got background alone")
    of_j, of_f = rows[::2], rows[1::2]
    # math.fsum does not depend on the order, and so not on the number of ranks.
    j, j_recall = (math.fsum(column) / len(of_j) for column in zip(*of_j, strict=True))
    f, f_recall = (math.fsum(column) / len(of_f) for column in zip(*of_f, strict=True))
    return {
        f"{prefix}_jf": (j + f) / 2,
        f"{prefix}_j": j,
        f"{prefix}_f": f,
        f"{prefix}_j_recall": j_recall,
        f"{prefix}_f_recall": f_recall,
    }
