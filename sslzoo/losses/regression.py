"""Regression of the target: BYOL's squared distance and SimSiam's negative cosine.

Grill et al., NeurIPS 2020, https://arxiv.org/abs/2006.07733, equation 2.
Chen and He, CVPR 2021, https://arxiv.org/abs/2011.10566, equation 1.
Reference code: deepmind/deepmind-research, byol/utils/helpers.py; facebookresearch/simsiam,
main_simsiam.py.

Deviations: none.
"""

from __future__ import annotations

from torch import Tensor

from sslzoo.checks import check_same_shape
from sslzoo.distributed import row_layout, world_size
from sslzoo.layers.precision import l2_normalize, no_autocast


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
    check_same_shape("p and z", p, z)
    with no_autocast(p):
        difference = l2_normalize(p, eps=1e-6) - l2_normalize(z, eps=1e-6)
        return difference.square().sum() * (world_size() / row_layout(len(p)).total)


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
    check_same_shape("p and z", p, z)
    with no_autocast(p):
        cosines = l2_normalize(p, eps=1e-6) * l2_normalize(z, eps=1e-6)
        return -cosines.sum() * (world_size() / row_layout(len(p)).total)
