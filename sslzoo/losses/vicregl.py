"""VICRegL: VICReg of whole crops, and of local features matched by position and by feature.

Bardes, Ponce and LeCun, NeurIPS 2022, https://arxiv.org/abs/2210.01571, section 3.
Reference code: facebookresearch/VICRegL at 803ae4c, main_vicregl.py and transforms.py.

Deviations: none.

Shapes: n local samples, V views of which the first two are the large ones, L_v = h w locations of
view v (rows first), P matched locations, D and C width of the embeddings. A pair is a large view
and any other view: there are 2 (V - 1), so that the two large views are a pair twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.distributed import Rows, global_sum, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.vicreg import EPS, VICRegTerms, check_rows, variance_and_covariance

_LARGE = 2  # views that are the first of a pair
Spread = tuple[Tensor, Tensor]  # a variance and a covariance term


class Matches(NamedTuple):
    """Locations of one map and their nearest neighbors in another.

    Attributes:
        own: (n, P) int64 locations in the first map, in increasing order.
        others: (n, P) int64 locations in the second; several may have the same neighbor.
    """

    own: Tensor
    others: Tensor


def crop_centers(boxes: Tensor, grid: tuple[int, int], flip: bool = True) -> Tensor:
    """Centers of the cells of a grid over each crop, in pixels of the source image.

    Args:
        boxes: (n, 5) int64 of `Batch.boxes`: top, left, height, width, flip.
        grid: (h, w), the size of the feature map.
        flip: whether the columns of flipped crops are mirrored, as their pixels are.

    Returns:
        (n, h w, 2) float32: row and column.
    """
    height, width = grid
    top, left, box_height, box_width = boxes[:, :4].float()[..., None].unbind(1)  # (n, 1) each
    down = (torch.arange(height, device=boxes.device) + 0.5) / height
    along = (torch.arange(width, device=boxes.device) + 0.5) / width
    rows, columns = top + box_height * down, left + box_width * along
    if flip:
        columns = torch.where(boxes[:, 4:] > 0, columns.flip(1), columns)
    rows, columns = torch.broadcast_tensors(rows[:, :, None], columns[:, None])  # (n, h, w)
    return torch.stack((rows, columns), dim=-1).flatten(1, 2)


@torch.no_grad()
def nearest(x: Tensor, y: Tensor, num_matches: int | None = None) -> Matches:
    """Match each location of one map with the nearest of another, by Euclidean distance.

    Args:
        x: (n, L, C) features or centers.
        y: (n, M, C), likewise.
        num_matches: P, how many locations of x are kept, those with the nearest neighbors; None:
            all.

    Raises:
        ValueError: for more matches than locations.
    """
    if num_matches is not None and not 1 <= num_matches <= x.shape[1]:
        raise ValueError(
            f"num_matches must be in 1..{x.shape[1]}, the locations of the view's feature map, got "
            f"{num_matches}"
        )
    with no_autocast(x):
        x, y = at_least_float32(x), at_least_float32(y)
        exact = "donot_use_mm_for_euclid_dist"  # the same for any batch
        distance, others = torch.cdist(x, y, compute_mode=exact).min(dim=2)  # (n, L)
    if num_matches is None:
        own = torch.arange(x.shape[1], device=x.device).expand_as(others)
        return Matches(own, others)
    own = distance.argsort(dim=1, stable=True)[:, :num_matches].sort(dim=1).values
    return Matches(own, others.gather(1, own))


def vicregl_global(embeddings: Sequence[Tensor]) -> VICRegTerms:
    """VICReg's terms of whole crops: means over pairs (invariance) and over views (the others).

    Args:
        embeddings: V tensors (n, D).

    Returns:
        The unweighted terms. With two views, variance is that of `vicreg` and covariance half.

    Raises:
        ValueError: for other shapes, or fewer than two rows in the global batch.
    """
    if len(embeddings) < _LARGE or any(z.dim() != 2 for z in embeddings):
        raise ValueError(f"embeddings must be at least 2 tensors (n, D), got {shapes(*embeddings)}")
    rows = check_rows(len(embeddings[0]))
    with no_autocast(embeddings[0]):
        z = [at_least_float32(x) for x in embeddings]
        pairs = [_distance(z[i], z[j], rows) for i, j in _pairs(len(z))]
        variances, covariances = zip(*(variance_and_covariance(x, rows) for x in z), strict=True)
        return VICRegTerms(*(torch.stack(x).mean() for x in (pairs, variances, covariances)))


def vicregl_local(
    maps: Sequence[Tensor],
    centers: Sequence[Tensor],
    num_matches: tuple[int, int] = (20, 4),
    match_all_features: bool = True,
) -> VICRegTerms:
    """VICReg's terms of matched locations: by feature plus by position, mean over pairs.

    Each kind is the mean of both directions. By feature, all locations are matched, or as many as
    by position: num_matches[0] of the first map of a pair, num_matches[1] of the second. Variance
    and covariance are computed per location over the global batch.

    Args:
        maps: V tensors (n, L_v, C), projected feature maps.
        centers: V tensors (n, L_v, 2), see `crop_centers`.
        num_matches: (20, 4) in the code.
        match_all_features: whether all locations are matched by feature (the code's
            l2_all_matches).

    Raises:
        ValueError: for other shapes, fewer than two rows in the global batch, or more matches than
            locations.
    """
    alike = [x.shape[:2] == y.shape[:2] for x, y in zip(maps, centers, strict=False)]
    if len(maps) < _LARGE or len(maps) != len(centers) or not all(alike):
        raise ValueError(
            "maps and centers must be at least 2 tensors (n, L, C) and as many (n, L, 2), got "
            f"{shapes(*maps)} and {shapes(*centers)}"
        )
    rows = check_rows(len(maps[0]))
    kept = (None, None) if match_all_features else num_matches
    found: dict[tuple[int, int, int | None, bool], VICRegTerms] = {}
    terms = []
    with no_autocast(maps[0]):
        z = [at_least_float32(x) for x in maps]
        of_all = [_spread(x, rows) for x in z] if match_all_features else []
        for i, j in _pairs(len(z)):
            for way in (
                (i, j, kept[0], True),
                (j, i, kept[1], True),
                (i, j, num_matches[0], False),
                (j, i, num_matches[1], False),
            ):
                if way not in found:  # the two large views are a pair twice
                    a, b, count, by_feature = way
                    points = z if by_feature else centers
                    matches = nearest(points[a], points[b], count)
                    spread = None if count is not None else of_all[a]
                    found[way] = _matched(z[a], z[b], matches, rows, spread)
                terms.append(found[way])
        kinds = 2  # the means over two directions are added
        return VICRegTerms(*(kinds * torch.stack(x).mean() for x in zip(*terms, strict=True)))


def _pairs(number: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(_LARGE) for j in range(number) if i != j]


def _distance(x: Tensor, y: Tensor, rows: Rows) -> Tensor:
    """Mean squared difference over the global batch."""
    return (x - y).square().sum() * (world_size() / (rows.total * x[0].numel()))


def _matched(
    x: Tensor, y: Tensor, matches: Matches, rows: Rows, spread: Spread | None = None
) -> VICRegTerms:
    """The terms of matched locations of two maps (n, L, C) and (n, M, C).

    Args:
        x: the first map.
        y: the second map.
        matches: locations of both.
        rows: from `row_layout(n)`.
        spread: of all locations of x, if all are matched.
    """
    if spread is None:
        x = _at(x, matches.own)
        spread = _spread(x, rows)
    y = _at(y, matches.others)
    (v1, c1), (v2, c2) = spread, _spread(y, rows)
    return VICRegTerms(_distance(x, y, rows), (v1 + v2) / 2, (c1 + c2) / 2)


def _at(z: Tensor, which: Tensor) -> Tensor:
    """The features (n, P, C) at the locations (n, P) of a map (n, L, C)."""
    return z.gather(1, which[..., None].expand(-1, -1, z.shape[2]))


def _spread(z: Tensor, rows: Rows) -> Spread:
    """Variance and covariance terms of (n, P, C), whose locations have their own statistics."""
    z = z - global_sum(z.sum(dim=0)) / rows.total
    covariance = global_sum(torch.einsum("npc,npd->pcd", z, z)) / (rows.total - 1)
    variance = covariance.diagonal(dim1=1, dim2=2)  # (P, C)
    squares = covariance.square().sum() - variance.square().sum()
    return (1 - (variance + EPS).sqrt()).relu().mean(), squares / z[0].numel()
