"""MSN: cross entropy with sharpened assignments to prototypes, and two entropies.

Assran et al., Masked Siamese Networks for Label-Efficient Learning, ECCV 2022,
https://arxiv.org/abs/2204.07141, section 3.
Reference code: facebookresearch/msn at 4388dc1, src/losses.py.

Deviations:
    range: computed on logarithms, in float32 at least; the reference code raises probabilities to
        powers, which vanish below 1e-38.

Shapes: n local and N global samples, V anchors of each, D width, K prototypes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.checks import check_interval, check_positive, shapes
from sslzoo.distributed import global_sum, row_layout, world_size
from sslzoo.layers.precision import l2_normalize, no_autocast
from sslzoo.losses.sinkhorn import sinkhorn


class MSNTerms(NamedTuple):
    """The unweighted terms, whose mean over ranks is that of the global batch.

    Attributes:
        cross_entropy: mean over all anchors of the cross entropy with their sample's target.
        mean_entropy: log K - H of the mean prediction of all anchors: 0 if all prototypes are used
            equally often (the code's me-max).
        entropy: mean over all anchors of the entropy of the prediction.
    """

    cross_entropy: Tensor
    mean_entropy: Tensor
    entropy: Tensor


def log_assignments(
    z: Tensor, prototypes: Tensor, temperature: float, label_smoothing: float = 0.0
) -> Tensor:
    """Logarithms of the soft assignments to prototypes by cosine similarity.

    Args:
        z: (..., D), not normalized.
        prototypes: (K, D), not normalized.
        temperature: tau, which divides the cosines.
        label_smoothing: weight of the uniform distribution.

    Returns:
        (..., K) in float32 at least.
    """
    with no_autocast(z):
        z, prototypes = l2_normalize(z), l2_normalize(prototypes)
        log_p = (z @ prototypes.to(z.dtype).T / temperature).log_softmax(dim=-1)
        if label_smoothing == 0:
            return log_p
        return (label_smoothing / len(prototypes) + (1 - label_smoothing) * log_p.exp()).log()


@torch.no_grad()
def msn_targets(
    z: Tensor,
    prototypes: Tensor,
    temperature: float,
    sharpening: float,
    sinkhorn_iterations: int = 3,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Targets: assignments to the power of 1 / T, normalized, then balanced over the global batch.

    Args:
        z: (n, D) of the target network, not normalized.
        prototypes: (K, D), not normalized.
        temperature: tau.
        sharpening: T; at 1 assignments are left as they are, below they are sharper.
        sinkhorn_iterations: iterations of `sinkhorn` on the sharpened probabilities of all ranks;
            0: none.
        label_smoothing: see `log_assignments`.

    Returns:
        (n, K) without gradient; each row sums to 1.

    Raises:
        ValueError: for other shapes, or temperatures that are not positive.
    """
    _check(z, prototypes, 2, temperature, label_smoothing)
    check_positive("sharpening", sharpening)
    with no_autocast(z):
        log_p = log_assignments(z, prototypes, temperature, label_smoothing) / sharpening
        log_p = log_p.log_softmax(dim=-1)
        if sinkhorn_iterations == 0:
            return log_p.exp()
        return sinkhorn(log_p, epsilon=1.0, iterations=sinkhorn_iterations)


def msn(
    z: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float,
    label_smoothing: float = 0.0,
) -> MSNTerms:
    """The terms of MSN.

    Args:
        z: (n, V, D) anchors, not normalized.
        prototypes: (K, D), not normalized.
        targets: (n, K), see `msn_targets`; those of all anchors of a sample.
        temperature: tau; 0.1 in the paper.
        label_smoothing: see `log_assignments`.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check(z, prototypes, 3, temperature, label_smoothing)
    if targets.shape != (len(z), len(prototypes)):
        raise ValueError(
            f"targets must be ({len(z)}, {len(prototypes)}), one row per sample, got "
            f"{shapes(targets)}"
        )
    mean = world_size() / (row_layout(len(z)).total * z.shape[1])
    with no_autocast(z):
        log_p = log_assignments(z, prototypes, temperature, label_smoothing)  # (n, V, K)
        p = log_p.exp()
        cross_entropy = -(targets.detach().to(p.dtype)[:, None] * log_p).sum() * mean
        usage = global_sum(p.sum(dim=(0, 1))) * (mean / world_size())  # (K,)
        mean_entropy = math.log(len(prototypes)) + torch.xlogy(usage, usage).sum()
        return MSNTerms(cross_entropy, mean_entropy, -(p * log_p).sum() * mean)


def _check(z: Tensor, prototypes: Tensor, dims: int, temperature: float, smoothing: float) -> None:
    if z.dim() != dims or prototypes.dim() != 2 or z.shape[-1] != prototypes.shape[1]:
        wanted = "(n, D)" if dims == 2 else "(n, V, D)"
        raise ValueError(f"z must be {wanted} and prototypes (K, D), got {shapes(z, prototypes)}")
    check_positive("temperature", temperature)
    check_interval("label_smoothing", smoothing, 0, 1, "[)")
