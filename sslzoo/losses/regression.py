"""Regression of the target's projection: BYOL's squared distance and SimSiam's negative cosine.

Grill et al., NeurIPS 2020, https://arxiv.org/abs/2006.07733, equation 2.
Chen and He, CVPR 2021, https://arxiv.org/abs/2011.10566, equation 1.
Reference code: deepmind/deepmind-research, byol/utils/helpers.py; facebookresearch/simsiam,
main_simsiam.py.

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
        p: (n, D) predictions; L2-normalized here, the squared norm at least 1e-12.
        z: (n, D) target projections, detached by the caller; normalized in the same way.

    Returns:
        Scalar in 0..4 whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    _check(p, z, "regression")
    with no_autocast(p):
        return (_unit(p) - _unit(z)).square().sum() * _share(p)


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Mean over the global batch of -cos(p, z).

    Args:
        p: (n, D) predictions; L2-normalized here, the squared norm at least 1e-12.
        z: (n, D) projections, detached by the caller; normalized in the same way.

    Returns:
        Scalar in -1..1 whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    _check(p, z, "negative_cosine")
    with no_autocast(p):
        return -(_unit(p) * _unit(z)).sum() * _share(p)


def _check(p: Tensor, z: Tensor, who: str) -> None:
    if p.dim() != 2 or p.shape != z.shape:
        shapes = f"{tuple(p.shape)} and {tuple(z.shape)}"
        raise ValueError(f"{who} takes two (n, D) tensors of one shape, got {shapes}")


def _unit(x: Tensor) -> Tensor:
    return F.normalize(at_least_float32(x), dim=-1, eps=1e-6)


def _share(p: Tensor) -> float:
    """What a sum over own rows is multiplied by: W / N."""
    return world_size() / row_layout(len(p)).total
