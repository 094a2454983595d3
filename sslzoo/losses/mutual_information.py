"""Deep InfoMax's lower bounds on mutual information, and its adversarial prior.

Hjelm, Fedorov, Lavoie-Marchildon, Grewal, Bachman, Trischler and Bengio, ICLR 2019,
https://arxiv.org/abs/1808.06670, equations 4 to 8.
Reference code: rdevon/DIM, commit bac4765, cortex_DIM/functions/gan_losses.py, dim_losses.py.

Deviations:
    Donsker-Varadhan: ours is the paper's equation 4, with pairs of one image as positives and pairs
        of two images as negatives. The reference code applies its mask of images to the axes of
        locations: it raises unless locations, summaries and images are equal in number, and then
        gives a different value (3.230 instead of the formula's 0.021, with five of each).
    adversarial prior: the reference code steps the discriminator and the encoder one after the
        other; here both terms are in one sum, and neither has a gradient to the other's parameters.

Shapes: n local images, N global images, M locations, K summaries per image (1 in the paper), D
width of the encodings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.distributed import Rows, gather, rank, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.positives import own_pairs

Measure = Literal["JSD", "GAN", "KL", "RKL", "X2", "H2", "W1"]

_LOG_2 = math.log(2.0)
_OWN_SCORE = -10.0  # the reference code's score of an image with itself among the negatives

# Expectations over the joint and over the product of marginals of these functions of the scores:
# the paper has JSD, the others are the reference code's.
POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "JSD": lambda u: _LOG_2 + F.logsigmoid(u),
    "GAN": F.logsigmoid,
    "KL": lambda u: u,
    "RKL": lambda u: -(-u).exp(),
    "X2": lambda u: u.square(),
    "H2": lambda u: 1 - (-u).exp(),
    "W1": lambda u: u,
}
NEGATIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "JSD": lambda u: -F.logsigmoid(-u) - _LOG_2,
    "GAN": lambda u: -F.logsigmoid(-u),
    "KL": lambda u: (u - 1).exp(),
    "RKL": lambda u: u - 1,
    "X2": lambda u: -0.5 * (u.abs() + 1).square(),
    "H2": lambda u: u.exp() - 1,
    "W1": lambda u: u,
}


def dim_fenchel_dual(phi: Tensor, psi: Tensor, measure: Measure = "JSD") -> Tensor:
    """Negative dual bound: expectation over negative pairs minus that over positive pairs.

    Args:
        phi: (n, D, M) encoded locations; the score of a pair is the dot product.
        psi: (n, D, K) encoded summaries, image i that of phi's row i.
        measure: the divergence, see `POSITIVE`; for Donsker-Varadhan use `dim_donsker_varadhan`.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch; positives are the pairs of
        an image with itself, negatives all others.

    Raises:
        ValueError: for other shapes, another measure, or a global batch of one image.
    """
    if measure not in POSITIVE:
        raise ValueError(
            f"measure must be one of {list(POSITIVE)} (for DV use dim_donsker_varadhan), got "
            f"{measure!r}"
        )
    with no_autocast(phi):
        u, rows = _scores(phi, psi)
        own = own_pairs(rows, u.device)[:, None, :, None]
        # filled before, too: exp of a large own score would be inf times 0 in the backward pass
        negative = NEGATIVE[measure](u.masked_fill(own, 0.0)).masked_fill(own, 0.0)
        positive = POSITIVE[measure](_diagonal(u, rows))
        others = rows.total - 1
        pairs = rows.total * phi.shape[2] * psi.shape[2]
        return (negative.sum() / others - positive.sum()) * (world_size() / pairs)


def dim_info_nce(phi: Tensor, psi: Tensor) -> Tensor:
    """InfoNCE of a summary with each own location against all other images' locations.

    An image's own locations are among the negatives with the constant score -10, as in the
    reference code.

    Args:
        phi: (n, D, M) encoded locations; the score of a pair is the dot product.
        psi: (n, D, K) encoded summaries, image i that of phi's row i.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a global batch of one image.
    """
    with no_autocast(phi):
        u, rows = _scores(phi, psi)
        negatives = u.masked_fill(own_pairs(rows, u.device)[:, None, :, None], _OWN_SCORE)
        norm = negatives.flatten(2).logsumexp(2)  # (n, K)
        positive = _diagonal(u, rows)
        terms = -F.logsigmoid(positive - norm[:, :, None].expand_as(positive))
        return terms.sum() * (world_size() / (rows.total * phi.shape[2] * psi.shape[2]))


def dim_donsker_varadhan(phi: Tensor, psi: Tensor) -> Tensor:
    """Negative Donsker-Varadhan bound: log mean exp of negatives minus mean of positives.

    Args:
        phi: (n, D, M) encoded locations; the score of a pair is the dot product.
        psi: (n, D, K) encoded summaries, image i that of phi's row i.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a global batch of one image.
    """
    with no_autocast(phi):
        u, rows = _scores(phi, psi)
        negatives = u.masked_fill(own_pairs(rows, u.device)[:, None, :, None], -torch.inf)
        local = negatives.flatten().logsumexp(0)
        one_each = Rows((1,) * world_size(), rank(), world_size())
        pairs = rows.total * phi.shape[2] * psi.shape[2]
        norm = gather(local[None], one_each).logsumexp(0) - math.log(pairs * (rows.total - 1))
        return norm - _diagonal(u, rows).sum() * (world_size() / pairs)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Cross entropy of a discriminator between samples of the prior and features.

    Args:
        real: (n,) scores of samples of the prior.
        fake: (n,) scores of features, detached by the caller.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch; 2 log 2 for scores of 0.

    Raises:
        ValueError: for other shapes.
    """
    if real.dim() != 1 or real.shape != fake.shape:
        raise ValueError(f"real and fake must be (n,) of one length, got {shapes(real, fake)}")
    real, fake = at_least_float32(real), at_least_float32(fake)
    terms = -F.logsigmoid(real) - F.logsigmoid(-fake)
    return terms.sum() * (world_size() / row_layout(len(real)).total)


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating loss of the encoder: -log of the probability that features are real.

    Args:
        fake: (n,) scores of features, from a discriminator with detached parameters.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch; log 2 for scores of 0.

    Raises:
        ValueError: for other shapes.
    """
    if fake.dim() != 1:
        raise ValueError(f"fake must be (n,), got {shapes(fake)}")
    terms = -F.logsigmoid(at_least_float32(fake))
    return terms.sum() * (world_size() / row_layout(len(fake)).total)


def gradient_penalty(gradient: Tensor) -> Tensor:
    """Mean squared norm of a discriminator's input gradients (Mescheder et al., 2018).

    Args:
        gradient: (n, D) gradients by the inputs, themselves differentiable.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    if gradient.dim() != 2:
        raise ValueError(f"gradient must be (n, D), got {shapes(gradient)}")
    total = row_layout(len(gradient)).total
    return at_least_float32(gradient).square().sum() * (world_size() / total)


def _scores(phi: Tensor, psi: Tensor) -> tuple[Tensor, Rows]:
    """Scores u[i, k, j, m] of summary k of image i and location m of image j. (n, K, N, M)."""
    if phi.dim() != 3 or psi.dim() != 3 or phi.shape[:2] != psi.shape[:2]:
        raise ValueError(f"phi must be (n, D, M) and psi (n, D, K), got {shapes(phi, psi)}")
    rows = row_layout(len(phi))
    if rows.total < 2:
        raise ValueError("the global batch must have at least 2 images (for negatives), got 1")
    phi, psi = at_least_float32(phi), at_least_float32(psi)
    keys = gather(phi, rows).transpose(1, 2).flatten(0, 1)  # (N M, D)
    u = psi.transpose(1, 2) @ keys.T  # (n, K, N M)
    return u.unflatten(2, (rows.total, -1)), rows


def _diagonal(u: Tensor, rows: Rows) -> Tensor:
    """Scores of the pairs of own images with themselves, (n, K, M)."""
    return u.diagonal(rows.start, 0, 2).permute(2, 0, 1)
