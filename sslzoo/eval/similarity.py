"""Sentence similarity: Spearman's correlation on scored pairs, and two baseline features.

Shapes: n pairs, 2n sentences of which 2i and 2i + 1 are a pair; B sentences, L positions, V words,
D width. Tokens are enclosed by [CLS] and [SEP], which the baseline features ignore.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.eval.features import Features, gather_features


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation in [-1, 1]; tied values get their mean rank.

    torchmetrics' `spearman_corrcoef` adds 1e-6 to the denominator: three values in perfect order
    have 0.9999985 there and 1 here.

    Args:
        x: (n,) finite values.
        y: (n,) finite values.

    Returns:
        The correlation; 0 if all of x or all of y are equal.

    Raises:
        ValueError: for other shapes, fewer than 2 values, or values that are not finite.
    """
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(
            "x and y must be (n,) of the same length, at least 2, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not bool((x.isfinite() & y.isfinite()).all()):
        raise ValueError("x and y must be finite, got NaN or infinity")
    a, b = (ranks - ranks.mean() for ranks in (_ranks(x), _ranks(y)))
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-12))


def _ranks(x: Tensor) -> Tensor:
    """Ranks of the values, (n,) float64; ties get their mean rank."""
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def pair_spearman(features: Tensor, score: Tensor) -> float:
    """Spearman's correlation of the pairs' cosines with their scores, as in SentEval ("all").

    Cosines are rounded to six digits.

    Args:
        features: (2n, D).
        score: (2n,), each pair's score twice.

    Raises:
        ValueError: the two rows of a pair have different scores, or see `spearman`.
    """
    if len(features) != len(score) or len(score) % 2 or not torch.equal(score[::2], score[1::2]):
        raise ValueError(
            "features must be (2n, D) and score (2n,) with each pair's value twice, got "
            f"{tuple(features.shape)} and {tuple(score.shape)}"
        )
    cosine = F.cosine_similarity(features[::2].double(), features[1::2].double(), dim=1)
    # Equal sentences must tie, although their float32 features vary with batch size and rank.
    return spearman((cosine * 1e6).round(), score[::2])


def scored_spearman(own: Features) -> float:
    """Compute `pair_spearman` over the pairs of all ranks; collective.

    Args:
        own: this rank's sentences; those with index 2i and 2i + 1 are a pair, and their labels are
            its score.
    """
    every = gather_features(own)
    if every.label is None:
        raise ValueError("pairs must have scores as labels, got none")
    return pair_spearman(every.features, every.label.double())


def bag_of_words(tokens: Tokens, num_ids: int) -> Tensor:
    """Word counts per sentence. (B, V) float32."""
    counts = torch.zeros(len(tokens.ids), num_ids, device=tokens.ids.device)
    return counts.scatter_add_(1, tokens.ids, _words(tokens).float())


def mean_of_tokens(tokens: Tokens, embedding: Tensor) -> Tensor:
    """Mean embedding of each sentence's words. Shapes: embedding (V, D) -> (B, D)."""
    words = _words(tokens)[:, :, None]
    return (embedding[tokens.ids] * words).sum(1) / words.sum(1).clamp_min(1)


def _words(tokens: Tokens) -> Tensor:
    positions = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
    return (positions > 0) & (positions < tokens.lengths[:, None] - 1)
