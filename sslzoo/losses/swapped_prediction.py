"""Swapped prediction: each crop predicts the assignments of its sample's other crops.

Caron et al., NeurIPS 2020, https://arxiv.org/abs/2006.09882, section 3.
Reference code: facebookresearch/swav at 06b1b7c, main_swav.py, train.

Deviations: none.

Shapes: B local samples, V crops, A crops with assignments, D width, K prototypes. The logits of
one crop exist at a time: the gradient is formed with them in the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslzoo.checks import check_positive, shapes
from sslzoo.distributed import row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import RowBlocks


def swapped_prediction(
    z: Tensor, prototypes: Tensor, assignments: Tensor, assigned: Sequence[int], temperature: float
) -> Tensor:
    """Mean cross entropy of assignments and predictions over samples and pairs of crops.

    A pair is a crop with assignments and any other crop; there are A (V - 1) pairs.

    Args:
        z: (B, V, D) embeddings, L2-normalized by the caller.
        prototypes: (K, D), L2-normalized by the caller.
        assignments: (A, B, K) targets q; a constant.
        assigned: positions of the A crops with assignments among the V.
        temperature: tau, divides the scores of the predictions; 0.1 in the paper.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, a single crop, crops that do not exist, or a temperature
            that is not positive.
    """
    _check(z, prototypes, assignments, assigned, temperature)
    num_samples, num_crops, _ = z.shape
    with no_autocast(z):
        z = at_least_float32(z)
        targets = assignments.detach().to(z.dtype)
        scale = world_size() / (row_layout(num_samples).total * len(assigned) * (num_crops - 1))
        blocks = RowBlocks(z.flatten(0, 1), prototypes.to(z.dtype))
        value = z.new_zeros(())
        for crop in range(num_crops):
            others = [q for q, of in zip(targets, assigned, strict=True) if of != crop]
            if not others:
                continue
            q = torch.stack(others).sum(dim=0)  # all pairs at once
            mass = q.sum(dim=1, keepdim=True)
            rows = slice(crop, None, num_crops)
            logits = blocks.dots(rows).div_(temperature)
            norm = logits.logsumexp(dim=1, keepdim=True)
            value = value + scale * ((mass * norm).sum() - (q * logits).sum())
            slope = logits.sub_(norm).exp_().mul_(mass).sub_(q)
            blocks.add_slope(rows, slope.mul_(scale / temperature))
        return blocks.total(value)


def _check(
    z: Tensor, prototypes: Tensor, assignments: Tensor, assigned: Sequence[int], temperature: float
) -> None:
    got = shapes(z, prototypes, assignments)
    if z.dim() != 3 or prototypes.dim() != 2 or z.shape[2] != prototypes.shape[1]:
        raise ValueError(f"z must be (B, V, D) and prototypes (K, D), got {got}")
    if assignments.shape != (len(assigned), len(z), len(prototypes)):
        raise ValueError(f"assignments must be ({len(assigned)}, B, K), got {got}")
    num_crops = z.shape[1]
    if num_crops < 2 or len(set(assigned)) != len(assigned) or not assigned:
        raise ValueError(
            "z must have at least two crops and assigned must list distinct ones, got "
            f"{num_crops} crops and {list(assigned)}"
        )
    if not all(0 <= crop < num_crops for crop in assigned):
        raise ValueError(f"assigned must be in 0..{num_crops - 1}, got {list(assigned)}")
    check_positive("temperature", temperature)
