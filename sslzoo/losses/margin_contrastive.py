"""Margin contrastive loss: positive pairs attract, negative pairs repel up to a margin.

Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006,
equation 4: 1/2 D^2 for similar pairs, 1/2 max(0, m - D)^2 for others; D is the Euclidean distance.
Reference code: adambielski/siamese-triplet, losses.py, commit 0c719f9.

Deviations:
    pairs: the mean over all positive and that over all negative pairs of the global batch, each
        with weight 1/2; the reference code draws as many positive as negative pairs, which has the
        same expectation. The paper sums over pairs.
    slope at 0: where the distance of a negative pair divides, it is at least sqrt(1e-9); the
        reference code adds 1e-9 under the square root.

Shapes: n local samples, V views, D width, M = V N rows. The M x M distances are never kept.
"""

from __future__ import annotations

from torch import Tensor

from sslzoo.checks import check_positive
from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import MIN_DISTANCE, RowBlocks
from sslzoo.losses.positives import find_positives


def margin_contrastive(z: Tensor, label: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Margin contrastive loss, with positive and negative pairs weighted equally.

    Half the mean of D^2 / 2 over positive pairs plus half that of max(0, m - D)^2 / 2 over negative
    pairs.

    Args:
        z: (n, V, D) points of V >= 2 views; not normalized here.
        label: (n,) integers, equal for positives; None: the views of one sample are positives.
        margin: m, a distance, not its square.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a margin that is not positive.
    """
    check_positive("margin", margin)
    with no_autocast(z):
        rows = row_layout(len(z))
        positives = find_positives(z, label, rows)
        z = at_least_float32(z)
        blocks = RowBlocks(z.flatten(0, 1), gather(z, rows).flatten(0, 1))
        num_positive, num_negative = positives.counts()
        pull = world_size() / (2 * num_positive.to(z.dtype))
        push = world_size() / (2 * num_negative.clamp_min(1).to(z.dtype))
        total = z.new_zeros(())
        for part in blocks.slices:
            distance = blocks.distances(part)
            same = pull * positives.positive(part)
            other = push * positives.negative(part)
            short = (margin - distance).clamp_min(0)
            total = total + (same * distance.square() + other * short.square()).sum() / 2
            slope = (same - other * short / distance.clamp_min(MIN_DISTANCE)) / 2
            blocks.add_square_slope(part, slope)
        return blocks.total(total)
