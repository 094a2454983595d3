"""Masked language model: cross-entropy of the hidden tokens.

Devlin, Chang, Lee and Toutanova, BERT, NAACL 2019, https://arxiv.org/abs/1810.04805.
Reference code: google-research/bert, run_pretraining.py (get_masked_lm_output).

Deviations:
    1. The mean is over the hidden tokens of the global batch; the code's denominator has 1e-5
       more. Without a hidden token the loss is 0.

Shapes: n places of this rank, V words.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslzoo.distributed import sum_over_ranks, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast


def masked_language_model(logits: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Mean over the global batch's hidden tokens of -log p[token].

    Args:
        logits: (n, V).
        targets: (n,) int64, what stood there.
        real: (n,) bool; places that are not do not count.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    if logits.dim() != 2 or not targets.shape == real.shape == logits.shape[:1]:
        shapes = f"{tuple(logits.shape)}, {tuple(targets.shape)} and {tuple(real.shape)}"
        raise ValueError(f"masked_language_model takes (n, V), (n,) and (n,), got {shapes}")
    with no_autocast(logits):
        terms = F.cross_entropy(at_least_float32(logits), targets, reduction="none")
        count = sum_over_ranks(real.sum().to(terms.dtype)).clamp_min(1)
        return (terms * real).sum() * (world_size() / count)
