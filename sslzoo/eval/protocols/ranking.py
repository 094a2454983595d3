"""Retrieval by names: revisited Oxford and Paris with junk images, and copy detection.

Radenovic et al., Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking, CVPR 2018,
https://arxiv.org/abs/1803.11285; code filipradenovic/revisitop at 3bb68d3, python/evaluate.py.
Douze et al., Evaluation of GIST descriptors for web-scale image search, CIVR 2009 (Copydays), as in
facebookresearch/dino at 7c446df, eval_copy_detection.py. Both interpolate the precision between the
ranks by trapezoids.
Shapes: q queries, m images of the database, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = {  # positives and junk per level: revisitop, example_evaluate.py
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def trapezoid_precision(ranks: Sequence[int], num_relevant: int) -> float:
    """Average precision by trapezoids: `compute_ap` of revisitop.

    Args:
        ranks: ascending positions of the relevant images that were found, from 0.
        num_relevant: number of relevant images.

    Example:
        >>> trapezoid_precision([0, 2], 2)  # ((1 + 1) / 2 + (1/2 + 2/3) / 2) / 2
        0.7916666666666666
    """
    total = 0.0
    for found, rank in enumerate(ranks):
        before = found / rank if rank else 1.0
        total += (before + (found + 1) / (rank + 1)) / 2
    return total / num_relevant


def ranking_of(query: Tensor, database: Tensor) -> Tensor:
    """Positions in the database by descending cosine, equal ones in order.

    Shapes: (q, D), (m, D) -> (q, m).

    Similarities are computed in float64 and rounded to eight digits, so that the batches in which
    features were computed do not decide between equal images.
    """
    similarity = F.normalize(query.double(), dim=1) @ F.normalize(database.double(), dim=1).T
    return (similarity * 1e8).round().argsort(dim=1, descending=True, stable=True)


def revisited(
    ranking: Tensor, truth: Sequence[Mapping[str, Sequence[int]]], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """MAP and mP@k of the levels easy, medium and hard; queries without positives do not count.

    Args:
        ranking: (q, m) positions in the database, the nearest first.
        truth: per query, positions of its "easy", "hard" and "junk" images; junk images are
            taken out of the ranking.
        ks: values of k for the mean precision at k, which is at most the last positive's rank.

    Returns:
        `map_<level>` and `mp<k>_<level>`; a level without any positive is left out.

    Raises:
        ValueError: the numbers of queries differ, or no query has a positive.
    """
    if len(ranking) != len(truth):
        raise ValueError(
            f"there must be one ground truth per query ({len(ranking)}), got {len(truth)}"
        )
    figures: dict[str, float] = {}
    for level, (wanted, junk) in LEVELS.items():
        rows = []
        for order, known in zip(ranking, truth, strict=True):
            positives = [i for kind in wanted for i in known[kind]]
            if positives:
                ignored = [i for kind in junk for i in known[kind]]
                rows.append(_query(order, positives, ignored, ks))
        if rows:
            mean = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
            names = ["map", *(f"mp{k}" for k in ks)]
            figures |= {f"{n}_{level}": v for n, v in zip(names, mean, strict=True)}
    if not figures:
        raise ValueError("a query must have an easy or hard image in the database, got none")
    return figures


def _query(order: Tensor, positives: list[int], junk: list[int], ks: Sequence[int]) -> list[float]:
    kept = order[~torch.isin(order, torch.tensor(junk, dtype=order.dtype, device=order.device))]
    hit = torch.isin(kept, torch.tensor(positives, dtype=order.dtype, device=order.device))
    ranks = hit.nonzero()[:, 0].tolist()
    if not ranks:  # every positive is junk too
        return [0.0] * (1 + len(ks))
    last = ranks[-1] + 1
    precisions = [sum(r < min(k, last) for r in ranks) / min(k, last) for k in ks]
    return [trapezoid_precision(ranks, len(positives)), *precisions]


def copy_detection(ranking: Tensor, positives: Sequence[Sequence[int]], most: int = 20) -> float:
    """MAP of copy detection over the `most` nearest images, as in DINO's code.

    Args:
        ranking: (q, m) positions in the database, the nearest first.
        positives: per query, positions of the images that it was made from.
        most: number of nearest images that are looked at.
    """
    values = [
        trapezoid_precision(
            [rank for rank, i in enumerate(order[:most].tolist()) if i in set(right)], len(right)
        )
        for order, right in zip(ranking, positives, strict=True)
    ]
    return sum(values) / len(values)
