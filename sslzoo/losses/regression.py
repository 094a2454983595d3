"""Regression: BYOL's distance between a prediction and the target's projection.

Grill et al., NeurIPS 2020, https://arxiv.org/abs/2006.07733, equation 2.
Reference code: deepmind/deepmind-research, byol/utils/helpers.py.

Deviations: none.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslzoo.distributed import row_layout, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast


def regression(p: Tensor, z: Tensor) -> Tensor:
    """Mean over the global batch of ||p/|p| - z/|z|||^2 = 2 - 2 cos(p, z).

    Args:
        p: (n, D) predictions; L2-normalised here, the squared norm at least 1e-12.
        z: (n, D) target projections, detached by the caller; normalised in the same way.

    Returns:
        Scalar in 0..4 whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    if p.dim() != 2 or p.shape != z.shape:
        shapes = f"{tuple(p.shape)} and {tuple(z.shape)}"
        raise ValueError(f"regression takes two (n, D) tensors of one shape, got {shapes}")
    with no_autocast(p):
        p = F.normalize(at_least_float32(p), dim=-1, eps=1e-6)
        z = F.normalize(at_least_float32(z), dim=-1, eps=1e-6)
        return (p - z).square().sum() * (world_size() / row_layout(len(p)).total)
