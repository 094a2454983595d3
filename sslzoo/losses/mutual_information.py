"""Mutual information: Deep InfoMax's lower bounds on it, and its adversarial prior.

Hjelm, Fedorov, Lavoie-Marchildon, Grewal, Bachman, Trischler and Bengio, ICLR 2019,
https://arxiv.org/abs/1808.06670, equations 4 to 8.
Reference code: rdevon/DIM, commit bac4765, cortex_DIM/functions/gan_losses.py, dim_losses.py.

Deviations:
    Donsker-Varadhan: ours is the paper's equation 4, positives the pairs of one image, negatives
        all pairs of two images. The reference code lays its mask of images along the axes of
        locations: it raises unless locations, summaries and images are equal in number, and then
        gives another value (3.230 where the formula gives 0.021, on five of each).
    adversarial prior: the reference code takes the discriminator's and the encoder's step one
        after the other; here both terms are in the one sum, each blind to the other's parameters.

Shapes: n local images, N global images, M locations, K summaries of an image (1 in the paper),
D width of the encodings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.distributed import Rows, gather, rank, row_layout, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast

Measure = Literal["JSD", "GAN", "DV", "KL", "RKL", "X2", "H2", "W1"]

_LOG_2 = math.log(2.0)
_OWN_SCORE = -10.0  # the reference code's score of an image with itself, among the negatives

_POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "JSD": lambda u: _LOG_2 + F.logsigmoid(u),
    "GAN": F.logsigmoid,
    "DV": lambda u: u,
    "KL": lambda u: u,
    "RKL": lambda u: -(-u).exp(),
    "X2": lambda u: u.square(),
    "H2": lambda u: 1 - (-u).exp(),
    "W1": lambda u: u,
}
_NEGATIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "JSD": lambda u: -F.logsigmoid(-u) - _LOG_2,
    "GAN": lambda u: -F.logsigmoid(-u),
    "DV": lambda u: u.logsumexp(0) - math.log(len(u)),
    "KL": lambda u: (u - 1).exp(),
    "RKL": lambda u: u - 1,
    "X2": lambda u: -0.5 * (u.abs() + 1).square(),
    "H2": lambda u: u.exp() - 1,
    "W1": lambda u: u,
}


def positive_expectation(scores: Tensor, measure: Measure) -> Tensor:
    """What the mean over the joint is taken of.

    Args:
        scores: of pairs that belong together; any shape.
        measure: the divergence: the paper's are JSD and DV, the others the reference code's.

    Returns:
        The scores' shape.

    Raises:
        ValueError: for a measure of another name.
    """
    _check_measure(measure)
    return _POSITIVE[measure](scores)


def negative_expectation(scores: Tensor, measure: Measure) -> Tensor:
    """What the mean over the product of marginals is taken of.

    Args:
        scores: of pairs that do not belong together; any shape, (n,) for DV.
        measure: as in `positive_expectation`.

    Returns:
        The scores' shape; for DV a scalar, the log of the mean of exp.

    Raises:
        ValueError: for a measure of another name.
    """
    _check_measure(measure)
    return _NEGATIVE[measure](scores)


def dim_fenchel_dual(phi: Tensor, psi: Tensor, measure: Measure = "JSD") -> Tensor:
    """Minus the dual bound: the negative pairs' mean expectation less the positive pairs'.

    Args:
        phi: (n, D, M) encoded locations; the score of a pair is the dot product.
        psi: (n, D, K) encoded summaries, row i beside phi's row i.
        measure: of `positive_expectation`, all but DV (which is `dim_donsker_varadhan`).

    Returns:
        Scalar whose mean over ranks is the loss of the global batch; positives are the pairs of
        an image with itself, negatives all others.

    Raises:
        ValueError: for other shapes, another measure, or a global batch of one image.
    """
    _check_measure(measure)
    if measure == "DV":
        raise ValueError("the measure DV has no mean over pairs; use dim_donsker_varadhan")
    with no_autocast(phi):
        u, rows = _scores(phi, psi)
        own = _own_pairs(u, rows)
        # filled before, too: exp of a large score of its own would be inf times 0 in the backward
        negative = _NEGATIVE[measure](u.masked_fill(own, 0.0)).masked_fill(own, 0.0)
        positive = _POSITIVE[measure](_diagonal(u, rows))
        others = rows.total - 1
        pairs = rows.total * phi.shape[2] * psi.shape[2]
        return (negative.sum() / others - positive.sum()) * (world_size() / pairs)


def dim_info_nce(phi: Tensor, psi: Tensor) -> Tensor:
    """Cross entropy of a summary's pair with each own location among all other images' locations.

    An image's own locations stand among the negatives with the constant score -10, as in the
    reference code.

    Args:
        phi: (n, D, M) encoded locations; the score of a pair is the dot product.
        psi: (n, D, K) encoded summaries, row i beside phi's row i.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a global batch of one image.
    """
    with no_autocast(phi):
        u, rows = _scores(phi, psi)
        negatives = u.masked_fill(_own_pairs(u, rows), _OWN_SCORE)
        norm = negatives.flatten(2).logsumexp(2)  # (n, K)
        positive = _diagonal(u, rows)
        terms = -F.logsigmoid(positive - norm[:, :, None].expand_as(positive))
        return terms.sum() * (world_size() / (rows.total * phi.shape[2] * psi.shape[2]))


def dim_donsker_varadhan(phi: Tensor, psi: Tensor) -> Tensor:
    """Minus the Donsker-Varadhan bound: log mean exp of negative pairs less the positives' mean.

    Args:
        phi: (n, D, M) encoded locations; the score of a pair is the dot product.
        psi: (n, D, K) encoded summaries, row i beside phi's row i.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a global batch of one image.
    """
    with no_autocast(phi):
        u, rows = _scores(phi, psi)
        negatives = u.masked_fill(_own_pairs(u, rows), -torch.inf)
        here = negatives.flatten().logsumexp(0)
        one_each = Rows((1,) * world_size(), rank(), world_size())
        pairs = rows.total * phi.shape[2] * psi.shape[2]
        norm = gather(here[None], one_each).logsumexp(0) - math.log(pairs * (rows.total - 1))
        return norm - _diagonal(u, rows).sum() * (world_size() / pairs)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Cross entropy of a discriminator: draws of the prior against features.

    Args:
        real: (n,) its scores of draws of the prior.
        fake: (n,) its scores of features, which the caller has detached.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch; 2 log 2 for scores of 0.

    Raises:
        ValueError: for other shapes.
    """
    if real.dim() != 1 or real.shape != fake.shape:
        shapes = f"{tuple(real.shape)} and {tuple(fake.shape)}"
        raise ValueError(f"discriminator_loss takes two (n,) tensors of one length, got {shapes}")
    real, fake = at_least_float32(real), at_least_float32(fake)
    terms = -F.logsigmoid(real) - F.logsigmoid(-fake)
    return terms.sum() * (world_size() / row_layout(len(real)).total)


def generator_loss(fake: Tensor) -> Tensor:
    """The non-saturating loss of what makes the features: -log of their odds to be real.

    Args:
        fake: (n,) the discriminator's scores of features, its parameters detached.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch; log 2 for scores of 0.

    Raises:
        ValueError: for other shapes.
    """
    if fake.dim() != 1:
        raise ValueError(f"generator_loss takes scores (n,), got {tuple(fake.shape)}")
    terms = -F.logsigmoid(at_least_float32(fake))
    return terms.sum() * (world_size() / row_layout(len(fake)).total)


def slope_penalty(slope: Tensor) -> Tensor:
    """Mean squared norm of a discriminator's gradients by its inputs (Mescheder et al., 2018).

    Args:
        slope: (n, D) gradients, themselves differentiable.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    if slope.dim() != 2:
        raise ValueError(f"slope_penalty takes gradients (n, D), got {tuple(slope.shape)}")
    total = row_layout(len(slope)).total
    return at_least_float32(slope).square().sum() * (world_size() / total)


def _check_measure(measure: str) -> None:
    if measure not in _POSITIVE:
        raise ValueError(f"measure is one of {list(_POSITIVE)}, got {measure!r}")


def _scores(phi: Tensor, psi: Tensor) -> tuple[Tensor, Rows]:
    """u[i, k, j, m]: own image i's summary k with location m of image j, (n, K, N, M)."""
    if phi.dim() != 3 or psi.dim() != 3 or phi.shape[:2] != psi.shape[:2]:
        shapes = f"{tuple(phi.shape)} and {tuple(psi.shape)}"
        raise ValueError(f"encodings (n, D, M) and (n, D, K) of one n and D wanted, got {shapes}")
    rows = row_layout(len(phi))
    if rows.total < 2:
        raise ValueError("negatives are other images: a batch of at least 2 wanted, got 1")
    phi, psi = at_least_float32(phi), at_least_float32(psi)
    keys = gather(phi, rows).transpose(1, 2).flatten(0, 1)  # (N M, D)
    u = psi.transpose(1, 2) @ keys.T  # (n, K, N M)
    return u.unflatten(2, (rows.total, -1)), rows


def _own_pairs(u: Tensor, rows: Rows) -> Tensor:
    """True where an own image meets itself, (n, 1, N, 1)."""
    images = torch.arange(u.shape[2], device=u.device)
    return (images[rows.start : rows.start + len(u), None] == images)[:, None, :, None]


def _diagonal(u: Tensor, rows: Rows) -> Tensor:
    """Scores of own images with themselves, (n, K, M)."""
    return u.diagonal(rows.start, 0, 2).permute(2, 0, 1)
