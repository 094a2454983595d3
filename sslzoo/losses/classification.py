"""Classification: cross entropy with labels, and with a teacher's probabilities.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015,
https://arxiv.org/abs/1503.02531; Chen et al., NeurIPS 2020, https://arxiv.org/abs/2006.10029,
equation 3. Shapes: n own rows, C classes.

Deviations: none (equation 3 has no factor of the temperature squared).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_labeled, check_positive, check_same_shape
from sslzoo.distributed import row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the global batch of -log p[label].

    Args:
        logits: (n, C).
        labels: (n,) int64, each in 0..C-1.
        label_smoothing: fraction of the target that is spread evenly over all classes.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    check_labeled("logits and labels", logits, labels)
    with no_autocast(logits):
        total = F.cross_entropy(
            at_least_float32(logits), labels, reduction="sum", label_smoothing=label_smoothing
        )
        return total * (world_size() / row_layout(len(logits)).total)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over the global batch of -sum_y P_T(y) log P_S(y), at one temperature.

    Args:
        student: (n, C) logits.
        teacher: (n, C) logits; a constant.
        temperature: divides the logits of student and teacher.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    check_same_shape("student and teacher", student, teacher)
    check_positive("temperature", temperature)
    with no_autocast(student):
        target = (at_least_float32(teacher.detach()) / temperature).softmax(1)
        log_p = (at_least_float32(student) / temperature).log_softmax(1)
        return -(target * log_p).sum() * (world_size() / row_layout(len(student)).total)
