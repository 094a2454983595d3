"""SupCon: supervised contrastive learning, the form with the sum outside the logarithm.

Khosla, Teterwak, Wang, Sarna et al., NeurIPS 2020, https://arxiv.org/abs/2004.11362, equation 2.
Reference code: HobbitLong/SupContrast, losses.py, commit 66a8fe5.

Deviations: none in the value; the reference code takes the loss of the batch that it is given, on
    one process.

Shapes: n local samples, N global ones, V views, D width, M = V N rows. The M x M similarities
never exist as a whole.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.losses.blockwise import RowBlocks
from sslzoo.losses.positives import identity
from sslzoo.losses.precision import at_least_float32, no_autocast


def sup_con(
    z: Tensor, label: Tensor | None, temperature: float, base_temperature: float = 0.07
) -> Tensor:
    """Mean over anchors of the mean cross entropy of each of their positives among all rows.

    Positives are the rows of the same label, the anchor's other views among them; the mean is
    multiplied by temperature / base_temperature.

    Args:
        z: (n, V, D) projections of V >= 2 views; L2-normalized here (squared norm at least
            1e-12).
        label: (n,) integers; None: a sample is alike its own views only, and the loss is SimCLR's.
        temperature: divides the cosines; 0.07 is the reference code's default, 0.1 its CIFAR
            recipe.
        base_temperature: of the factor; 0.07.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or temperatures that are not positive.
    """
    if not (temperature > 0 and base_temperature > 0):
        given = f"{temperature} and {base_temperature}"
        raise ValueError(f"sup_con takes temperatures above 0, got {given}")
    with no_autocast(z):
        rows = row_layout(len(z))
        who = identity(z, label, rows)
        z = F.normalize(at_least_float32(z), dim=-1, eps=1e-6)
        blocks = RowBlocks(z.flatten(0, 1), gather(z, rows).flatten(0, 1))
        total = z.new_zeros(())
        for part in blocks.slices:
            logits = blocks.dots(part) / temperature
            target = who.same(part).to(logits.dtype)
            target /= target.sum(dim=1, keepdim=True)
            positive = (target * logits).sum()
            logits.diagonal(who.first + part.start).fill_(-math.inf)
            norm = logits.logsumexp(dim=1, keepdim=True)
            total = total + norm.sum() - positive
            blocks.add_slope(part, ((logits - norm).exp_() - target) / temperature)
        scale = temperature / base_temperature * world_size() / len(who.every)
        return blocks.total(total) * scale
