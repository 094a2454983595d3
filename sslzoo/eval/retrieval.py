"""Retrieval metrics: mAP, recall@K and purity of the ranking by cosine similarity.

Each query ranks the whole bank (or all other queries, if there is no bank); samples of its own
class are relevant. Shapes: n queries and m bank rows of all ranks, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.distributed import gather_rows, row_layout, sum_over_ranks
from sslzoo.eval.knn.search import on_grid

TILE = 64  # queries per chunk of the ranking


class Retrieval(NamedTuple):
    """Retrieval metrics, averaged over the queries that have a relevant row.

    Args:
        mean_average_precision: mAP; a query's average precision is the mean over relevant ranks.
        recall: recall@K of metric learning by K: the fraction of queries with a relevant row among
            the K nearest.
        purity: the fraction of queries whose nearest row is relevant (recall@1).
        num_queries: number of queries with a relevant row.
    """

    mean_average_precision: float
    recall: dict[int, float]
    purity: float
    num_queries: int


@torch.no_grad()
def retrieval(
    query: Tensor,
    query_labels: Tensor,
    bank: Tensor | None = None,
    bank_labels: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    index: Tensor | None = None,
) -> Retrieval:
    """Compute mAP and recall@K by cosine similarity.

    Collective: each rank passes its own rows, in any number. Equal similarities are ordered by
    the bank's `index`, so that the metrics do not depend on the number of ranks.

    Args:
        query: (n, D) features of any scale.
        query_labels: (n,) classes of any integer type.
        bank: (m, D) features; None: each query ranks all other queries.
        bank_labels: (m,) classes.
        ks: values of K for recall@K.
        index: (m,) unique sample indices of the bank; None: the position among all ranks' rows.

    Raises:
        ValueError: for other shapes, a K below 1, or no query with a relevant row.
    """
    if (bank is None) != (bank_labels is None):
        raise ValueError("bank and bank_labels must be given together, got one of them")
    if min(ks, default=0) < 1:
        raise ValueError(f"K of recall@K must be at least 1, got {list(ks)}")
    itself = bank is None
    rows = query if bank is None else bank
    labels = query_labels if bank_labels is None else bank_labels
    for x, y in ((query, query_labels), (rows, labels)):
        if x.ndim != 2 or y.shape != x.shape[:1]:
            shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"features must be (n, D) and labels (n,), got {shapes}")
    start = row_layout(len(rows)).start
    asked = on_grid(query)
    every, classes = gather_rows(on_grid(rows)), gather_rows(labels.to(torch.int64))
    position = torch.arange(len(every), device=every.device)  # of each gathered row
    if index is not None:
        order = gather_rows(index.to(torch.int64)).argsort(stable=True)
        every, classes = every[order], classes[order]
        position = order.argsort()
    asked_ks = [1, *ks]  # K = 1 is the purity
    sums = torch.zeros(2 + len(asked_ks), dtype=torch.float64, device=query.device)
    for first in range(0, len(asked), TILE):
        few = slice(first, first + TILE)
        similarity = asked[few].double() @ every.T.double()
        relevant = query_labels[few, None] == classes
        if itself:
            own = position[start + first : start + first + len(similarity)]
            similarity.scatter_(1, own[:, None], -torch.inf)
            relevant.scatter_(1, own[:, None], False)
        sums += _scores(similarity, relevant, asked_ks)
    total = sum_over_ranks(sums).tolist()
    if not total[0]:
        raise ValueError("a query must have another sample of its class to rank, got none")
    mean, purity, *recall = (value / total[0] for value in total[1:])
    return Retrieval(mean, dict(zip(ks, recall, strict=True)), purity, int(total[0]))


def _scores(similarity: Tensor, relevant: Tensor, ks: Sequence[int]) -> Tensor:
    """Sums over queries: number with a relevant row, average precision, hits in the first K."""
    order = similarity.argsort(dim=1, descending=True, stable=True)
    hit = relevant.gather(1, order).double()
    found = hit.cumsum(1)
    rank = torch.arange(1, hit.shape[1] + 1, device=hit.device)
    total = found[:, -1]
    average = (hit * found / rank).sum(1) / total.clamp_min(1)
    counts = total > 0
    hits = [(found[:, min(k, hit.shape[1]) - 1] > 0).double().sum() for k in ks]
    return torch.stack([counts.double().sum(), average.sum(), *hits])
