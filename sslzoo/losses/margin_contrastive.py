"""Margin contrastive: pairs that show the same attract, others repel up to a margin.

Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006,
equation 4: 1/2 D^2 for similar pairs, 1/2 max(0, m - D)^2 for others, D the Euclidean distance.
Reference code: adambielski/siamese-triplet, losses.py, commit 0c719f9.

Deviations:
    pairs: all pairs of the global batch, either kind with weight 1/2; the reference code draws
        half of its pairs of either kind, which has the same expectation. The paper sums.
    slope at 0: a repelled pair's distance is taken as at least sqrt(1e-9) where it divides; the
        reference code adds 1e-9 under the root.

Shapes: n local samples, V views, D width, M = V N rows. The M x M distances never exist as a
whole.
"""

from __future__ import annotations

from torch import Tensor

from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.losses.blockwise import NEAREST, RowBlocks
from sslzoo.losses.positives import identity
from sslzoo.losses.precision import at_least_float32, no_autocast


def margin_contrastive(z: Tensor, label: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Half the mean of D^2 / 2 over similar pairs and of max(0, m - D)^2 / 2 over the others.

    Args:
        z: (n, V, D) points of V >= 2 views, as they are: normalized by the caller or not.
        label: (n,) integers, equal for similar samples; None: only views of one sample are.
        margin: m, a distance, not its square.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a margin that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin_contrastive takes a margin above 0, got {margin}")
    with no_autocast(z):
        rows = row_layout(len(z))
        who = identity(z, label, rows)
        z = at_least_float32(z)
        blocks = RowBlocks(z.flatten(0, 1), gather(z, rows).flatten(0, 1))
        num_same, num_other = who.counts()
        pull = world_size() / (2 * num_same.to(z.dtype))
        push = world_size() / (2 * num_other.clamp_min(1).to(z.dtype))
        total = z.new_zeros(())
        for part in blocks.slices:
            distance = blocks.distances(part)
            same, other = pull * who.same(part), push * who.other(part)
            short = (margin - distance).clamp_min(0)
            total = total + (same * distance.square() + other * short.square()).sum() / 2
            slope = (same - other * short / distance.clamp_min(NEAREST)) / 2
            blocks.add_square_slope(part, slope)
        return blocks.total(total)
