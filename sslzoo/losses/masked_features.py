"""Masked features: I-JEPA's distance between predicted and target features.

Assran et al., CVPR 2023, https://arxiv.org/abs/2301.08243.
Reference code: facebookresearch/ijepa at 52c1ae9, src/train.py.

Deviations: none.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.distributed import row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast


def masked_features(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean smooth L1 distance (quadratic below 1) to the layer-normalized target.

    Args:
        prediction: (n, ..., D).
        target: (n, ..., D) without gradient; layer-normalized here, without scale and offset.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    if prediction.dim() < 2 or prediction.shape != target.shape:
        got = shapes(prediction, target)
        raise ValueError(f"prediction and target must have one shape (n, ..., D), got {got}")
    with no_autocast(prediction):
        normalized = F.layer_norm(at_least_float32(target), target.shape[-1:])
        error = F.smooth_l1_loss(at_least_float32(prediction), normalized, reduction="none")
        n = len(error)
        return error.flatten(1).mean(1).sum() * (world_size() / row_layout(n).total)
