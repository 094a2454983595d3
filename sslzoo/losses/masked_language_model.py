"""Masked language model: cross entropy of the masked tokens.

Devlin, Chang, Lee and Toutanova, BERT, NAACL 2019, https://arxiv.org/abs/1810.04805.
Reference code: google-research/bert, run_pretraining.py (get_masked_lm_output).

Deviations:
    1. The mean is over the masked tokens of the global batch; the code adds 1e-5 to the
       denominator. Without a masked token the loss is 0.

Shapes: n local positions, V vocabulary size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.distributed import sum_over_ranks, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast


def masked_language_model(logits: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Mean of -log p[token] over the masked tokens of the global batch.

    Args:
        logits: (n, V).
        targets: (n,) int64, the original tokens.
        real: (n,) bool; False for padding, which does not count.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    if logits.dim() != 2 or not targets.shape == real.shape == logits.shape[:1]:
        got = shapes(logits, targets, real)
        raise ValueError(f"logits must be (n, V), targets and real (n,), got {got}")
    with no_autocast(logits):
        terms = F.cross_entropy(at_least_float32(logits), targets, reduction="none")
        count = sum_over_ranks(real.sum().to(terms.dtype)).clamp_min(1)
        return (terms * real).sum() * (world_size() / count)
