"""SupCon: the supervised contrastive loss, with the sum outside the logarithm.

Khosla, Teterwak, Wang, Sarna et al., NeurIPS 2020, https://arxiv.org/abs/2004.11362, equation 2.
Reference code: HobbitLong/SupContrast, losses.py, commit 66a8fe5.

Deviations: none; the reference code runs in one process.

Shapes: n local samples, N global ones, V views, D width, M = V N rows. The M x M similarities are
never kept.
"""

from __future__ import annotations

import math

from torch import Tensor

from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.layers.precision import l2_normalize, no_autocast
from sslzoo.losses.blockwise import RowBlocks
from sslzoo.losses.checks import check_positive
from sslzoo.losses.positives import find_positives


def sup_con(
    z: Tensor, label: Tensor | None, temperature: float, base_temperature: float = 0.07
) -> Tensor:
    """Mean cross entropy of each anchor's positives among all rows.

    Positives are the other rows of the anchor's label, its other views included; the mean is
    multiplied by temperature / base_temperature.

    Args:
        z: (n, V, D) projections of V >= 2 views; L2-normalized here (squared norm at least
            1e-12).
        label: (n,) integers; None: the views of one sample are positives, and the loss is SimCLR's.
        temperature: divides the cosines; 0.07 is the reference code's default, 0.1 its CIFAR
            recipe.
        base_temperature: denominator of the factor; 0.07 in the reference code.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or temperatures that are not positive.
    """
    check_positive("temperature", temperature)
    check_positive("base_temperature", base_temperature)
    with no_autocast(z):
        rows = row_layout(len(z))
        positives = find_positives(z, label, rows)
        z = l2_normalize(z, eps=1e-6)
        blocks = RowBlocks(z.flatten(0, 1), gather(z, rows).flatten(0, 1))
        total = z.new_zeros(())
        for part in blocks.slices:
            logits = blocks.dots(part) / temperature
            target = positives.positive(part).to(logits.dtype)
            target /= target.sum(dim=1, keepdim=True)
            positive = (target * logits).sum()
            logits.diagonal(positives.first + part.start).fill_(-math.inf)
            norm = logits.logsumexp(dim=1, keepdim=True)
            total = total + norm.sum() - positive
            blocks.add_slope(part, ((logits - norm).exp_() - target) / temperature)
        scale = temperature / base_temperature * world_size() / len(positives.every)
        return blocks.total(total) * scale
