"""AMDIM's NCE: a vector of one view picks its image's places in the other view.

Bachman, Hjelm and Buchwalter, NeurIPS 2019, https://arxiv.org/abs/1906.00910, section 3.4.
Reference code: Philip-Bachman/amdim-public, commit 8754ae1, costs.py.

Deviations: none; under the code's DataParallel too, every source meets all images' places.

Shapes: n local images, N global images, S places of a target map, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.distributed import Rows, gather, row_layout, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast


def amdim_nce(source: Tensor, target: Tensor, clip: float = 20.0) -> tuple[Tensor, Tensor]:
    """Cross entropy of each own place among all other images' places, and the scores' size.

    Scores are dot products over the square root of D, then clip * tanh(score / clip).

    Args:
        source: (n, D) vectors of one view.
        target: (n, D, S) places of the other view, row i beside source's row i.
        clip: bound of a score; 20 in the code.

    Returns:
        Two scalars whose means over ranks are those of the global batch: the cross entropy, and
        the mean square of all scores before the clip, which the code adds with the weight 0.05.

    Raises:
        ValueError: for other shapes, a clip that is not positive, or a batch of one image.
    """
    if source.dim() != 2 or target.dim() != 3 or source.shape != target.shape[:2]:
        shapes = f"{tuple(source.shape)} and {tuple(target.shape)}"
        raise ValueError(f"a source (n, D) and a target (n, D, S) wanted, got {shapes}")
    if not clip > 0:
        raise ValueError(f"scores are clipped at a bound above 0, got {clip}")
    with no_autocast(source):
        rows = row_layout(len(source))
        if rows.total < 2:
            raise ValueError("negatives are other images: a batch of at least 2 wanted, got 1")
        log_softmax, _, raw = place_scores(source, target, clip, rows)
        mean = world_size() / (rows.total * target.shape[2])
        return -log_softmax.sum() * mean, raw.square().sum() * (mean / rows.total)


def place_scores(
    source: Tensor, target: Tensor, clip: float, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """Log softmax (n, S) and clipped scores (n, S) of the own places; all raw ones (n, N, S)."""
    source, target = at_least_float32(source), at_least_float32(target)
    places = gather(target, rows).transpose(1, 2).flatten(0, 1)  # (N S, D)
    raw = (source / source.shape[1] ** 0.5 @ places.T).unflatten(1, (rows.total, -1))
    clipped = clip * (raw / clip).tanh()
    positive = clipped.diagonal(rows.start, 0, 1).T  # (n, S)
    images = torch.arange(rows.total, device=raw.device)
    own = images[rows.start : rows.start + len(source), None] == images  # (n, N)
    negatives = clipped.masked_fill(own[:, :, None], -torch.inf).flatten(1)
    norm = negatives.logsumexp(1, keepdim=True)
    return F.logsigmoid(positive - norm.expand_as(positive)), positive, raw
