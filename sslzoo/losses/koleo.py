"""KoLeo: the differential entropy of a batch by distances to nearest neighbors.

Sablayrolles, Douze, Schmid and Jegou, Spreading Vectors for Similarity Search, ICLR 2019,
https://arxiv.org/abs/1806.03198, as in Oquab et al., DINOv2, 2023,
https://arxiv.org/abs/2304.07193, section 4.
Reference code: facebookresearch/dinov2 at b8931f7, koleo_loss.py.

Deviations:
    ranks: neighbors are searched in the global batch; the reference code searches those of each
        GPU's own samples.

Shapes: n local and N global samples, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.layers.precision import l2_normalize, no_autocast
from sslzoo.losses.blockwise import RowBlocks

_EPS = 1e-8  # the reference code's, of the norms, the differences and the logarithm


def koleo(x: Tensor) -> Tensor:
    """Minus the mean logarithm of each row's distance to its nearest neighbor.

    Args:
        x: (n, D) features of one view; normalized here.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for another shape, or a global batch of one sample.
    """
    if x.dim() != 2:
        raise ValueError(f"x must be (n, D), got {shapes(x)}")
    rows = row_layout(len(x))
    if rows.total < 2:
        raise ValueError(f"the global batch must have at least 2 samples, got {rows.total}")
    with no_autocast(x):
        x = l2_normalize(x, _EPS)
        everyone = gather(x, rows)
        neighbor = everyone[_nearest(x, everyone, rows.start)]
        distance = torch.linalg.vector_norm(x - neighbor + _EPS, dim=1)
        return -(distance + _EPS).log().sum() * (world_size() / rows.total)


@torch.no_grad()
def _nearest(x: Tensor, everyone: Tensor, start: int) -> Tensor:
    """Position of each row's nearest neighbor among all rows. (n,) int64."""
    blocks = RowBlocks(x, everyone)
    found = [torch.empty(0, dtype=torch.int64, device=x.device)]
    for part in blocks.slices:
        cosines = blocks.dots(part)
        cosines.diagonal(start + part.start).fill_(-torch.inf)
        found.append(cosines.argmax(dim=1))
    return torch.cat(found)
