"""Masked units: HuBERT's cross entropy of the cluster of each masked frame.

Hsu et al., HuBERT, 2021, https://arxiv.org/abs/2106.07447, section II.
Reference code: facebookresearch/fairseq at 3d262bb, models/hubert/hubert.py and
criterions/hubert_criterion.py.

Deviations:
    classes with equal embeddings: all of them are in the softmax; in the code those that equal the
        true one are left out.
    without any frame that counts: the loss is 0.

Shapes: n local sequences, T frames, C units of a set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.distributed import sum_over_ranks, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast


def masked_units(
    logits: Sequence[Tensor],
    units: Tensor,
    masked: Tensor,
    unmasked: Tensor,
    unmasked_weight: float = 0.0,
    masked_weight: float = 1.0,
) -> Tensor:
    """Cross entropy summed over the sets of units, per frame of the global batch that counts.

    A frame counts, once for all sets, if it is masked and `masked_weight` is not 0, or unmasked and
    `unmasked_weight` is not 0.

    Args:
        logits: (n, T, C) of each set of units.
        units: (n, S, T) int64, the unit of each frame in each of the S sets; -1: unknown.
        masked: (n, T) bool, masked frames inside the sequences.
        unmasked: (n, T) bool, the other frames inside the sequences.
        unmasked_weight: weight of the unmasked frames; 0 in the paper's recipes.
        masked_weight: weight of the masked frames; 1.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.

    Example:
        >>> import torch
        >>> yes = torch.ones(1, 1, dtype=torch.bool)
        >>> value = masked_units([torch.zeros(1, 1, 4)], torch.tensor([[[2]]]), yes, ~yes)
        >>> round(value.item(), 4)  # log 4
        1.3863
    """
    frames = masked.shape
    if (
        units.shape != (frames[0], len(logits), *frames[1:])
        or unmasked.shape != frames
        or any(x.shape[:2] != frames or x.dim() != 3 for x in logits)
    ):
        raise ValueError(
            "logits must be (n, T, C) per set, units (n, S, T), masked and unmasked (n, T), got "
            f"{shapes(*logits, units, masked, unmasked)}"
        )
    counted = masked * float(masked_weight != 0) + unmasked * float(unmasked_weight != 0)
    with no_autocast(logits[0]):
        first = at_least_float32(logits[0])
        count = sum_over_ranks((counted * (units[:, 0] >= 0)).sum().to(first.dtype)).clamp_min(1)
        total = first.new_zeros(())
        for number, scores in enumerate(logits):
            known = units[:, number] >= 0
            weight = (masked * masked_weight + unmasked * unmasked_weight) * known
            terms = F.cross_entropy(
                at_least_float32(scores).mT, units[:, number].clamp_min(0), reduction="none"
            )
            total = total + (terms * weight).sum()
        return total * (world_size() / count)
