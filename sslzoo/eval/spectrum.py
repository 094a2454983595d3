"""Label-free metrics of collapse and quality: effective rank, spread, alignment, uniformity.

They take the features of all samples: with several ranks, call `gather_features` first.
Shapes: n samples, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_BLOCK = 1024


def _check(features: Tensor, least: int) -> None:
    if features.ndim != 2 or features.shape[0] < least:
        raise ValueError(
            f"features must be (n, D) with n at least {least}, got {tuple(features.shape)}"
        )


@torch.no_grad()
def effective_rank(features: Tensor, eps: float = 1e-7) -> Tensor:
    """RankMe: exp of the singular values' entropy, from 1 (collapse) to min(n, D).

    Garrido, Balestriero, Najman and LeCun, "RankMe", ICML 2023, equation 1: p = s / sum(s) + eps,
    exp(-sum p ln p), of the features as they are (not centered, not normalized).

    Args:
        features: (n, D).
        eps: the paper's 1e-7.

    Returns:
        Scalar float64.
    """
    _check(features, 1)
    x = features.cpu().double() if features.device.type == "mps" else features.double()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    p = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + eps
    return (-(p * p.log()).sum()).exp()


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Per-dimension standard deviation of the L2-normalized features, (D,).

    Its mean is 0 after a collapse to a point and about 1 / sqrt(D) for features spread over the
    sphere: Chen and He, "SimSiam", CVPR 2021, figure 2.

    Args:
        features: (n, D), n at least 2.
    """
    _check(features, 2)
    return F.normalize(features.float(), dim=1).std(dim=0)


@torch.no_grad()
def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean distance E |x - y|^alpha of positive pairs on the unit sphere. Scalar.

    Wang and Isola, "Alignment and Uniformity on the Hypersphere", ICML 2020 (alpha 2).

    Args:
        x: (n, D) features, normalized here.
        y: (n, D) features of the other views of the same samples.
        alpha: exponent.
    """
    _check(x, 1)
    if x.shape != y.shape:
        raise ValueError(
            f"x and y must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    difference = F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)
    return difference.norm(dim=1).pow(alpha).mean()


@torch.no_grad()
def uniformity(features: Tensor, t: float = 2.0) -> Tensor:
    """Log of the mean Gaussian potential of all pairs on the unit sphere. Scalar.

    Wang and Isola, ICML 2020: log of the mean of exp(-t |x_i - x_j|^2) over i < j (t 2). It is 0
    after a collapse.

    Args:
        features: (n, D), normalized here, n at least 2.
        t: inverse width of the Gaussian.
    """
    _check(features, 2)
    x = F.normalize(features.float(), dim=1)
    terms = []
    for start in range(0, len(x), ROW_BLOCK):
        rows = x[start : start + ROW_BLOCK]
        exponent = -t * (2 - 2 * rows @ x[start:].T).clamp_min(0)
        later = torch.ones_like(exponent, dtype=torch.bool).triu(1)
        terms.append(exponent.masked_fill(~later, -torch.inf).flatten().logsumexp(0))
    pairs = torch.tensor(len(x) * (len(x) - 1) / 2, device=x.device)
    return torch.stack(terms).logsumexp(0) - pairs.log()
