"""Losses of wav2vec 2.0: contrastive task, diversity of the codebook, penalty of the features.

Baevski, Zhou, Mohamed and Auli, NeurIPS 2020, https://arxiv.org/abs/2006.11477, section 3.2.
Reference code: facebookresearch/fairseq at 3d262bb, models/wav2vec/wav2vec2.py and
criterions/wav2vec_criterion.py.

Deviations:
    ranks: the mean use of the entries, the mean over masked frames and the penalty are those of the
        global batch; in the code the first and the last are one GPU's.
    penalty: padding is not in the mean of the squared features; in the code it is.

Shapes: n local sequences, T frames, M masked frames, K negatives, E further candidates, G groups of
V entries, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.checks import check_positive, shapes
from sslzoo.distributed import global_sum, sum_over_ranks, world_size
from sslzoo.layers.precision import at_least_float32, l2_normalize, no_autocast


def masked_contrastive(
    predictions: Tensor,
    targets: Tensor,
    negatives: Tensor,
    real: Tensor,
    duplicates: Tensor,
    temperature: float = 0.1,
    others: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy of each masked frame's target among K targets of its sequence, and others.

    A score is the cosine divided by the temperature.

    Args:
        predictions: (n, M, D).
        targets: (n, M, D) quantized, with or without gradient.
        negatives: (n, M, K) int64 in 0..M - 1, frames of the same sequence.
        real: (n, M) bool; other frames do not count.
        duplicates: (n, M, K + E) bool, candidates that equal the target and are left out.
        temperature: 0.1 in the paper.
        others: (n, M, E, D) further candidates; None: none.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch; 0 without a masked frame.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.

    Example:
        >>> x = torch.eye(2)[None]  # each target's own direction; the negative is orthogonal
        >>> real, no = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, 1, dtype=torch.bool)
        >>> negatives = torch.tensor([[[1], [0]]])
        >>> round(masked_contrastive(x, x, negatives, real, no, temperature=1.0).item(), 4)
        0.3133
    """
    extra = 0 if others is None else others.shape[2]
    if (
        predictions.dim() != 3
        or targets.shape != predictions.shape
        or real.shape != predictions.shape[:2]
        or negatives.shape[:2] != real.shape
        or negatives.dim() != 3
        or duplicates.shape != (*real.shape, negatives.shape[2] + extra)
        or (others is not None and others.shape[::3] != predictions.shape[::2])
    ):
        raise ValueError(
            "predictions and targets must be (n, M, D), negatives (n, M, K), real (n, M), "
            "duplicates (n, M, K + E) and others (n, M, E, D) or None, got "
            f"{shapes(predictions, targets, negatives, real, duplicates, others)}"
        )
    check_positive("temperature", temperature)
    with no_autocast(predictions):
        p, t = l2_normalize(predictions), l2_normalize(targets)
        positive = (p * t).sum(2, keepdim=True)  # (n, M, 1)
        scores = [(p @ t.mT).gather(2, negatives)]  # (n, M, K)
        if others is not None:
            scores.append((l2_normalize(others) @ p[..., None])[..., 0])  # (n, M, E)
        candidates = torch.cat(scores, dim=2).masked_fill(duplicates, -torch.inf)
        logits = torch.cat([positive, candidates], dim=2) / temperature
        terms = (logits.logsumexp(2) - logits[..., 0]) * real
        count = sum_over_ranks(real.sum().to(terms.dtype)).clamp_min(1)
        return terms.sum() * (world_size() / count)


def group_perplexities(probabilities: Tensor, real: Tensor) -> Tensor:
    """Effective number of entries in use per group (G,): exp(entropy) of the mean use.

    Every rank returns that of the global batch, in 1..V.

    Args:
        probabilities: (n, M, G, V) of each frame.
        real: (n, M) bool; other frames do not count.
    """
    if probabilities.shape[:-2] != real.shape:
        got = shapes(probabilities, real)
        raise ValueError(f"probabilities must be (n, M, G, V) and real (n, M), got {got}")
    with no_autocast(probabilities):
        used = at_least_float32(probabilities) * real[..., None, None]
        count = sum_over_ranks(real.sum().to(used.dtype)).clamp_min(1)
        mean = global_sum(used.flatten(0, -3).sum(0)) / count  # (G, V)
        return (-(mean * (mean + 1e-7).log()).sum(1)).exp()


def perplexity(probabilities: Tensor, real: Tensor) -> Tensor:
    """Effective number of entries in use, summed over the groups; see `group_perplexities`."""
    return group_perplexities(probabilities, real).sum()


def codebook_diversity(probabilities: Tensor, real: Tensor) -> Tensor:
    """Fraction of the G V entries that are not in use: 0 for uniform use.

    Args:
        probabilities: see `group_perplexities`.
        real: see `group_perplexities`.
    """
    total = probabilities.shape[-2] * probabilities.shape[-1]
    return (total - perplexity(probabilities, real)) / total


def feature_penalty(features: Tensor, real: Tensor) -> Tensor:
    """Mean square of the convolutions' outputs over the real frames of the global batch.

    Args:
        features: (n, T, C) before the layer norm.
        real: (n, T) bool; other frames do not count.

    Returns:
        Scalar whose mean over ranks is that of the global batch.
    """
    if features.dim() != 3 or real.shape != features.shape[:2]:
        got = shapes(features, real)
        raise ValueError(f"features must be (n, T, C) and real (n, T), got {got}")
    with no_autocast(features):
        squares = at_least_float32(features).square().mean(2) * real
        count = sum_over_ranks(real.sum().to(squares.dtype)).clamp_min(1)
        return squares.sum() * (world_size() / count)
