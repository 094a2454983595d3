"""Classification: cross-entropy with labels, and with a teacher's probabilities.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015,
https://arxiv.org/abs/1503.02531; Chen et al., NeurIPS 2020, https://arxiv.org/abs/2006.10029,
equation 3. Shapes: n own rows, C classes.

Deviations: none (equation 3 has no factor of the temperature squared).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslzoo.distributed import row_layout, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the global batch of -log p[label].

    Args:
        logits: (n, C).
        labels: (n,) int64, each in 0..C-1.
        label_smoothing: share of the target that is spread evenly over all classes.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"cross_entropy takes logits (n, C) and labels (n,), got {shapes}")
    with no_autocast(logits):
        total = F.cross_entropy(
            at_least_float32(logits), labels, reduction="sum", label_smoothing=label_smoothing
        )
        return total * (world_size() / row_layout(len(logits)).total)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over the global batch of -sum_y P_T(y) log P_S(y), both at the temperature.

    Args:
        student: (n, C) logits.
        teacher: (n, C) logits; taken as constant.
        temperature: divides the logits of both.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"soft_cross_entropy takes two (n, C) tensors of one shape, got {shapes}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    with no_autocast(student):
        target = (at_least_float32(teacher.detach()) / temperature).softmax(1)
        log_p = (at_least_float32(student) / temperature).log_softmax(1)
        return -(target * log_p).sum() * (world_size() / row_layout(len(student)).total)
