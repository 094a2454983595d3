"""Exact weighted k-nearest-neighbor classification with the bank sharded over ranks.

The protocol of Wu, Xiong, Yu and Lin, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", CVPR 2018 (test.py of zhirongw/lemniscate.pytorch), and of DINO's eval_knn.py: the
k rows of the bank with the largest cosine similarity s vote for their class with weight exp(s/T).

The neighbors are exact in the sense of `neighbors`: a function of the features alone. A large
search runs in float32 first; the queries whose neighbors or best class its rounding could have
changed have their candidates rescored in float64, or all rows where the candidates do not suffice.

Every function here is collective: each rank passes its own rows of the bank and its own queries,
in any number. Shapes: n queries and m bank rows of this rank, M bank rows of all ranks, D width,
C classes, k neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslzoo.checks import check_classes
from sslzoo.distributed import row_layout, sum_over_ranks
from sslzoo.eval.knn.search import (
    INDEX_BITS,
    Bank,
    Neighbors,
    at_once,
    first_occurrence,
    float32_error,
    on_grid,
    rescore,
    search,
    similarity_of,
)

SMALL = 1 << 33  # multiply-adds of all ranks below which the search runs in float64 at once
SLACK = 16  # neighbors beyond k that are rescored
QUERY_TILE = 512  # queries per chunk of the vote


def _vote(found: Neighbors, num_classes: int, k: int, temperature: float) -> Tensor:
    """Sum of exp(s/T) by class, (n, C) float64, in the order of the neighbors."""
    weight = (similarity_of(found.key[:, :k]).double() / temperature).exp()
    votes = weight.new_zeros(weight.shape[0], num_classes)
    return votes.scatter_add_(1, found.label[:, :k], weight)


def _unsure(
    found: Neighbors,
    settings: Sequence[tuple[int, float]],
    num_classes: int,
    error: float,
    tops: Sequence[int],
) -> Tensor:
    """Mask (n,) of queries whose neighbors or best classes the similarities' error could change.

    Args:
        found: neighbors by float32 similarity, at least one more than the largest k unless the
            bank has no more rows.
        settings: pairs (k, temperature).
        num_classes: C.
        error: bound of |float32 similarity - exact similarity|.
        tops: numbers of best classes that are asked for.
    """
    similarity = similarity_of(found.key)
    most = min(max(tops) + 1, num_classes)
    unsure = torch.zeros(len(similarity), dtype=torch.bool, device=similarity.device)
    for k, temperature in settings:
        if k < similarity.shape[1]:
            unsure |= similarity[:, k - 1] - similarity[:, k] <= 2 * error
        step = at_once(QUERY_TILE, similarity.device)
        for start in range(0, len(similarity), step):
            tile = Neighbors(*(x[start : start + step] for x in found))
            best = _vote(tile, num_classes, k, temperature).topk(most, dim=1).values
            for top in tops:
                if (last := min(top, k)) < num_classes:
                    worst, next_one = best[:, last - 1], best[:, last]
                    close = worst - next_one <= 4 * error / temperature * worst
                    unsure[start : start + step] |= close & (worst > 0)
    return unsure


def _neighbors(
    query: Tensor,
    bank: Bank,
    num_classes: int,
    settings: Sequence[tuple[int, float]],
    tops: Sequence[int] = (1,),
) -> Neighbors:
    """Neighbors of each query for the largest k, such that the best classes are exact."""
    k = max(k for k, _ in settings)
    sizes = torch.tensor([len(query), len(bank.rows)], dtype=torch.int64, device=query.device)
    num_queries, num_rows = sum_over_ranks(sizes).tolist()
    if k > num_rows:
        raise ValueError(f"k must be at most {num_rows} (the bank's size), got {k}")
    width = query.shape[1]
    if num_queries * num_rows * width <= SMALL:
        return search(query, bank, k, exact=True)
    more, most = min(k + 1, num_rows), min(k + SLACK, num_rows)
    near = search(query, bank, most, exact=False)
    found = Neighbors(near.key[:, :more].clone(), near.label[:, :more].clone())
    unsure = _unsure(found, settings, num_classes, float32_error(width), tops)
    again = unsure.nonzero().squeeze(1)
    near = Neighbors(near.key[again], near.label[again])
    better, sure = rescore(query[again], bank, near, more)
    found.key[again], found.label[again] = better.key, better.label
    again = again[~sure]
    exact = search(query[again], bank, more, exact=True)
    found.key[again], found.label[again] = exact.key, exact.label
    return found


def _check(name: str, wrong: Tensor, wanted: str) -> None:
    """Raise the same error on every rank if a value is invalid on any rank."""
    count = int(sum_over_ranks(wrong.sum()).item())
    if count:
        raise ValueError(f"{name} must be {wanted}, got {count} rows that are not")


def _prepare(
    query: Tensor, bank: Tensor, labels: Tensor, num_classes: int, index: Tensor | None
) -> tuple[Tensor, Bank]:
    labels = check_classes("kNN", labels)
    if query.device.type == "mps":  # it has no float64
        query, bank, labels = query.cpu(), bank.cpu(), labels.cpu()
    labels = labels.to(bank.device)
    outside = (labels < 0) | (labels >= num_classes)
    _check("the kNN bank labels", outside, f"in 0..{num_classes - 1}")
    layout = row_layout(len(bank))
    if index is None:
        index = layout.start + torch.arange(len(bank), device=bank.device)
    index = index.to(bank.device, torch.int64)
    _check("the kNN bank index", (index < 0) | (index >= 1 << INDEX_BITS), "in 0..2**32-1")
    own = first_occurrence(index, layout)
    own = own[index[own].argsort(stable=True)]
    query = on_grid(query)
    in_order = torch.equal(own, torch.arange(len(bank), device=own.device))
    bank = on_grid(bank if in_order else bank[own])  # spares a copy of the whole bank
    _check("the kNN query features", query.sum(1).isnan(), "finite")
    _check("the kNN bank features", bank.sum(1).isnan(), "finite")
    return query, Bank(bank, labels[own], index[own])


def check_settings(settings: Sequence[tuple[int, float]]) -> None:
    """Refuse no pair at all, k below 1, and a temperature below 0.002.

    Raises:
        ValueError: names the number and its bound.
    """
    for k, temperature in settings:
        if k < 1:
            raise ValueError(f"k, the number of neighbors, must be at least 1, got {k}")
        if temperature < 0.002:  # exp(1 / 0.002) is still a float64
            raise ValueError(f"the kNN temperature must be at least 0.002, got {temperature}")
    if not settings:
        raise ValueError("the kNN settings must be at least one pair (k, temperature), got none")


@torch.no_grad()
def knn_predict(
    query: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    bank_index: Tensor | None = None,
) -> Tensor:
    """Class votes of the k nearest rows: the sum of exp(cosine / temperature) per class.

    The best class is the same for any number of ranks and any tile size; `argmax` takes the lowest
    of tied classes. The votes themselves carry float32 rounding of the similarities.

    Args:
        query: (n, D) features of any scale.
        bank: (m, D).
        bank_labels: (m,) classes, any dtype.
        num_classes: C.
        k: number of neighbors.
        temperature: T, 0.07 in InstDisc and DINO.
        bank_index: (m,) sample indices, which break ties of equal similarity; of rows with the same
            index only the first counts. None: the position among all ranks' rows.

    Returns:
        (n, C) float64.

    Raises:
        ValueError: k larger than the bank, a label outside 0..C-1, features that are not finite.
    """
    check_settings([(k, temperature)])
    query, rows = _prepare(query, bank, bank_labels, num_classes, bank_index)
    found = _neighbors(query, rows, num_classes, [(k, temperature)])
    return _vote(found, num_classes, k, temperature)


@torch.no_grad()
def knn_top1(
    query: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    settings: Sequence[tuple[int, float]],
    bank_index: Tensor | None = None,
) -> list[float]:
    """Accuracy over all ranks' queries for several (k, temperature) settings from one search.

    Args:
        query: (n, D) features, each sample on one rank only.
        query_labels: (n,) classes, any dtype.
        bank: (m, D).
        bank_labels: (m,) classes.
        num_classes: C.
        settings: pairs (k, temperature).
        bank_index: as for `knn_predict`.

    Returns:
        One fraction in [0, 1] per setting, the same on every rank.
    """
    data = query, query_labels, bank, bank_labels, num_classes
    return [top1 for (top1,) in knn_accuracies(*data, settings, (1,), bank_index)]


@torch.no_grad()
def knn_accuracies(
    query: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    settings: Sequence[tuple[int, float]],
    tops: Sequence[int] = (1, 5),
    bank_index: Tensor | None = None,
) -> list[list[float]]:
    """Top-1, top-5 or other accuracies for several (k, temperature) settings from one search.

    A query counts if its class is among the `top` with the most votes, but at most k, as in DINO's
    eval_knn.py. Tied classes, such as those without any vote, go by the lowest class.

    Args:
        query: see `knn_top1`.
        query_labels: see there.
        bank: see there.
        bank_labels: see there.
        num_classes: C.
        settings: pairs (k, temperature).
        tops: numbers of best classes.
        bank_index: as for `knn_predict`.

    Returns:
        Per setting, one fraction in [0, 1] per entry of `tops`, the same on every rank.

    Raises:
        ValueError: see `knn_predict`; an entry of `tops` is below 1.
    """
    check_settings(settings)
    if not tops or min(tops) < 1:
        raise ValueError(f"tops must be numbers of at least 1, got {list(tops)}")
    query, rows = _prepare(query, bank, bank_labels, num_classes, bank_index)
    found = _neighbors(query, rows, num_classes, settings, tops)
    labels = query_labels.to(query.device, torch.int64)
    size = len(settings) * len(tops)
    right = torch.zeros(size + 1, dtype=torch.int64, device=query.device)
    right[-1] = len(query)
    step = at_once(QUERY_TILE, query.device)
    for start in range(0, len(query), step):
        tile = Neighbors(*(x[start : start + step] for x in found))
        truth = labels[start : start + step, None]
        for number, (k, temperature) in enumerate(settings):
            rank = _rank(_vote(tile, num_classes, k, temperature), truth)
            for position, top in enumerate(tops):
                right[number * len(tops) + position] += (rank < min(top, k, num_classes)).sum()
    *correct, total = sum_over_ranks(right).tolist()
    if total == 0:
        raise ValueError("kNN must have at least one query, got none on any rank")
    shares = [count / total for count in correct]
    return [shares[i : i + len(tops)] for i in range(0, size, len(tops))]


def _rank(votes: Tensor, truth: Tensor) -> Tensor:
    """Number of classes ahead of the true one; ties go by the lowest class.

    Shapes: votes (n, C), truth (n, 1) -> (n,). The rank of a class outside 0..C-1 is C.
    """
    classes = torch.arange(votes.shape[1], device=votes.device)
    known = (truth >= 0) & (truth < len(classes))
    own = votes.gather(1, truth.where(known, 0))
    ahead = (votes > own) | ((votes == own) & (classes < truth))
    return ahead.sum(1).where(known[:, 0], len(classes))
