"""Weighted k-nearest-neighbour classification: exact, in tiles, with the bank sharded over ranks.

The protocol of Wu, Xiong, Yu and Lin, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", CVPR 2018 (test.py of zhirongw/lemniscate.pytorch), and of DINO's eval_knn.py: the
k rows of the bank with the largest cosine similarity s vote for their class with weight exp(s/T).

What "exact" means: rows are normalised onto a grid of 2^-24, so that the products and sums of a
float64 matrix product are free of rounding, whatever its shape; s is that number as float32; equal
s are ordered by bank index. So the neighbours are a function of the features alone, not of tiles,
ranks or threads. A large search runs in float32 first and repeats in float64 only the queries
whose neighbours or best class the float32 rounding could have changed.

Every function here is collective: each rank passes its rows of the bank and its queries, any
number of each. Shapes: n queries and m bank rows of this rank, M bank rows of all ranks, D width,
C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.distributed import Rows, gather_rows, rank, row_layout, sum_over_ranks, world_size

GRID = 2.0**24  # float32 holds all multiples of 1/GRID up to 1; their dot products fit in float64
INDEX_BITS = 32  # of a sortable key: similarity above, complement of the bank index below
GROUPS = (32, 8)  # neighbouring similarities of which only the largest enters a selection
LOWEST = torch.iinfo(torch.int64).min  # a key below every real one
QUERY_TILE = 512
BANK_TILE = 4096  # rows of the bank that are float64 at a time
BLOCK = 65536  # columns among which one selection is made: 128 MB of similarities
SMALL = 1 << 33  # multiply-adds of all ranks below which the search runs in float64 at once


class _Bank(NamedTuple):
    rows: Tensor  # (m, D) float32 on the grid, in the order of index
    label: Tensor  # (m,) int64
    index: Tensor  # type: ignore[assignment]  # (m,) int64, unique over all ranks


class _Neighbours(NamedTuple):
    key: Tensor  # (n, k) int64, descending: similarity, then bank index ascending
    label: Tensor  # (n, k) int64


def _on_grid(x: Tensor) -> Tensor:
    """L2-normalise rows in float64 and round to the grid; NaN where a row is not finite.

    Shapes: (n, D) -> (n, D) float32.
    """
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for start in range(0, x.shape[0], BANK_TILE):
        rows = x[start : start + BANK_TILE].double()
        rows = rows * (GRID / rows.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12))
        out[start : start + BANK_TILE] = rows.round_().div_(GRID)
    return out


def _keys(similarity: Tensor, index: Tensor) -> Tensor:
    """int64 that sorts by (similarity, -index). Shapes: both (n, c) or broadcastable to it."""
    bits = (similarity + 0.0).view(torch.int32).to(torch.int64)  # + 0.0: -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered << INDEX_BITS) | ((1 << INDEX_BITS) - 1 - index)


def _similarity(key: Tensor) -> Tensor:
    """The float32 in a key."""
    ordered = key >> INDEX_BITS
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(torch.int32).view(torch.float32)


def _top(values: Tensor, position: Tensor, k: int, exact: bool) -> Tensor:
    """Columns of the k largest, (n, k); if exact, equal values by position ascending."""
    if exact:
        values = _keys(values, position)
    return values.topk(k, dim=1, sorted=False).indices


def _select(similarity: Tensor, k: int, exact: bool) -> Tensor:
    """Columns of the k largest of each row, (n, k), in no order; ties as in `_top`.

    The k best groups of neighbouring columns, by (largest member, then position), contain the k
    best columns: each of k better groups holds a better column than any of a group left out.

    Shapes: similarity (n, c), c a multiple of the largest of GROUPS.
    """
    n, columns = similarity.shape
    device = similarity.device
    row = torch.arange(n, device=device)[:, None]
    values, position = similarity, torch.arange(columns, device=device).expand(n, columns)
    for size in GROUPS:
        if values.shape[1] // size > k:
            grouped, first = values.view(n, -1, size), position[:, ::size]
            best = _top(grouped.amax(2), first, k, exact)
            values = grouped[row, best].view(n, -1)
            within = torch.arange(size, device=device)
            position = (first.gather(1, best)[:, :, None] + within).view(n, -1)
    return position.gather(1, _top(values, position, min(k, values.shape[1]), exact))


def _none(n: int, k: int, device: torch.device) -> _Neighbours:
    """Places for k neighbours not yet found, below every real one."""
    empty = torch.full((n, k), LOWEST, dtype=torch.int64, device=device)
    return _Neighbours(empty, torch.zeros_like(empty))


def _merge(parts: Sequence[_Neighbours], k: int) -> _Neighbours:
    """The k best of all parts in order; parts with less than k together are filled up."""
    found = sum(part.key.shape[1] for part in parts)
    if found < k:
        parts = [*parts, _none(parts[0].key.shape[0], k - found, parts[0].key.device)]
    key = torch.cat([part.key for part in parts], dim=1)
    label = torch.cat([part.label for part in parts], dim=1)
    key, order = key.topk(k, dim=1)
    return _Neighbours(key, label.gather(1, order))


def _fill(out: Tensor, query: Tensor, rows: Tensor, exact: bool) -> None:
    """out[:, :len(rows)] = query @ rows.T; the columns beyond become -inf."""
    out[:, rows.shape[0] :] = -torch.inf
    if not exact:
        torch.mm(query, rows.T, out=out[:, : rows.shape[0]])
        return
    for start in range(0, rows.shape[0], BANK_TILE):
        tile = rows[start : start + BANK_TILE].double()
        out[:, start : start + tile.shape[0]] = query.double() @ tile.T


def _search_here(query: Tensor, bank: _Bank, k: int, exact: bool, buffer: Tensor) -> _Neighbours:
    """The k best of this rank's rows for every query; places left over hold the lowest key."""
    parts = [_none(query.shape[0], 0, query.device)]
    for start in range(0, bank.rows.shape[0], BLOCK):
        rows = bank.rows[start : start + BLOCK]
        columns = -(-rows.shape[0] // GROUPS[0]) * GROUPS[0]
        similarity = buffer[: query.shape[0] * columns].view(query.shape[0], columns)
        _fill(similarity, query, rows, exact)
        column = _select(similarity, k, exact)
        real = column < rows.shape[0]
        position = start + column.clamp_max(rows.shape[0] - 1)
        key = _keys(similarity.gather(1, column), bank.index[position])
        parts.append(_Neighbours(torch.where(real, key, LOWEST), bank.label[position]))
        parts = [_merge(parts, k)]
    return parts[0] if bank.rows.shape[0] else _merge(parts, k)


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 products: the error bound below is float32's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _search(query: Tensor, bank: _Bank, k: int, exact: bool) -> _Neighbours:
    """The k best rows of all ranks' banks for this rank's queries."""
    layout = row_layout(query.shape[0])
    columns = min(-(-bank.rows.shape[0] // GROUPS[0]) * GROUPS[0], BLOCK)
    tile_rows = min(QUERY_TILE, max(layout.counts))
    buffer = query.new_empty(tile_rows * world_size() * columns)
    found = [_none(0, k, query.device)]
    for start in range(0, max(layout.counts), QUERY_TILE):
        counts = tuple(min(max(n - start, 0), QUERY_TILE) for n in layout.counts)
        tile = Rows(counts, sum(counts[: rank()]), sum(counts))
        queries = gather_rows(query[start : start + QUERY_TILE], tile)
        here = _search_here(queries, bank, k, exact, buffer)
        parts = Rows((1,) * world_size(), rank(), world_size())
        keys = gather_rows(here.key[None], parts)[:, tile.own]
        labels = gather_rows(here.label[None], parts)[:, tile.own]
        ranks = [_Neighbours(key, label) for key, label in zip(keys, labels, strict=True)]
        found.append(_merge(ranks, k) if len(ranks) > 1 else ranks[0])
    return _Neighbours(*(torch.cat(column) for column in zip(*found, strict=True)))


def _vote(found: _Neighbours, num_classes: int, k: int, temperature: float) -> Tensor:
    """Sum of exp(s/T) by class, (n, C) float64, in the order of the neighbours."""
    weight = (_similarity(found.key[:, :k]).double() / temperature).exp()
    votes = weight.new_zeros(weight.shape[0], num_classes)
    return votes.scatter_add_(1, found.label[:, :k], weight)


def _unsure(
    found: _Neighbours, settings: Sequence[tuple[int, float]], num_classes: int, error: float
) -> Tensor:
    """Queries whose k neighbours or best class an error of the similarities could change, (n,).

    Args:
        found: by float32 similarities, at least one neighbour more than the largest k, except
            where the bank has no more.
        settings: pairs (k, temperature).
        num_classes: C.
        error: bound of |float32 similarity - exact similarity|.
    """
    similarity = _similarity(found.key)
    unsure = torch.zeros(len(similarity), dtype=torch.bool, device=similarity.device)
    for k, temperature in settings:
        if k < similarity.shape[1]:
            unsure |= similarity[:, k - 1] - similarity[:, k] <= 2 * error
        for start in range(0, len(similarity), QUERY_TILE):
            tile = _Neighbours(*(x[start : start + QUERY_TILE] for x in found))
            best = _vote(tile, num_classes, k, temperature).topk(min(2, num_classes), dim=1).values
            close = best[:, 0] - best[:, -1] <= 4 * error / temperature * best[:, 0]
            unsure[start : start + QUERY_TILE] |= close & (num_classes > 1)
    return unsure


def _neighbours(
    query: Tensor, bank: _Bank, num_classes: int, settings: Sequence[tuple[int, float]]
) -> _Neighbours:
    """The neighbours of each query, enough for the largest k; sets and best class are exact."""
    k = max(k for k, _ in settings)
    sizes = torch.tensor([len(query), len(bank.rows)], dtype=torch.int64, device=query.device)
    num_queries, num_rows = sum_over_ranks(sizes).tolist()
    if k > num_rows:
        raise ValueError(f"k = {k} neighbours wanted from a bank of {num_rows} rows")
    width = query.shape[1]
    if num_queries * num_rows * width <= SMALL:
        return _search(query, bank, k, exact=True)
    more = min(k + 1, num_rows)
    with _full_float32():
        found = _search(query, bank, more, exact=False)
    # Rounding of D random signs on partial sums of at most 1; the second term is the inputs'.
    error = 2.0**-24 * (2 * width**0.5 + 4)
    again = _unsure(found, settings, num_classes, error).nonzero().squeeze(1)
    exact = _search(query[again], bank, more, exact=True)
    found.key[again], found.label[again] = exact.key, exact.label
    return found


def _check(name: str, wrong: Tensor, wanted: str) -> None:
    """Raise on every rank alike if a value is wrong on any."""
    count = int(sum_over_ranks(wrong.sum()).item())
    if count:
        raise ValueError(f"{name}: {wanted}, but {count} of all ranks' rows are not")


def _prepare(
    query: Tensor, bank: Tensor, labels: Tensor, num_classes: int, index: Tensor | None
) -> tuple[Tensor, _Bank]:
    if labels.ndim != 1:
        raise ValueError(f"kNN wants one class a sample, labels (m,), got {tuple(labels.shape)}")
    if query.device.type == "mps":  # it has no float64
        query, bank, labels = query.cpu(), bank.cpu(), labels.cpu()
    labels = labels.to(bank.device, torch.int64)
    outside = (labels < 0) | (labels >= num_classes)
    _check("kNN bank labels", outside, f"classes 0..{num_classes - 1} wanted")
    layout = row_layout(len(bank))
    if index is None:
        index = layout.start + torch.arange(len(bank), device=bank.device)
    index = index.to(bank.device, torch.int64)
    _check("kNN bank index", (index < 0) | (index >= 1 << INDEX_BITS), "0..2**32-1 wanted")
    own = first_occurrence(index, layout)
    own = own[index[own].argsort(stable=True)]
    query, bank = _on_grid(query), _on_grid(bank[own])
    _check("kNN query features", query.sum(1).isnan(), "finite numbers wanted")
    _check("kNN bank features", bank.sum(1).isnan(), "finite numbers wanted")
    return query, _Bank(bank, labels[own], index[own])


def first_occurrence(index: Tensor, layout: Rows | None = None) -> Tensor:
    """Positions of this rank's rows that no earlier row of any rank has in common, ascending.

    Args:
        index: (m,) int64 sample indices; samplers that pad repeat some.
        layout: of the rows, from `row_layout(m)`.
    """
    layout = layout or row_layout(len(index))
    ordered, position = gather_rows(index, layout).sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    keep = torch.empty_like(first)
    keep[position] = first
    return keep[layout.own].nonzero().squeeze(1)


def _check_settings(settings: Sequence[tuple[int, float]]) -> None:
    for k, temperature in settings:
        if k < 1:
            raise ValueError(f"k, the number of neighbours, must be at least 1, got {k}")
        if temperature < 0.002:  # exp(1 / 0.002) is still a float64
            raise ValueError(f"the kNN temperature must be at least 0.002, got {temperature}")
    if not settings:
        raise ValueError("kNN wants at least one (k, temperature), got none")


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
    """Class votes of the k nearest rows: sum of exp(cosine / temperature) by class.

    The best class is the same for any number of ranks and any tile size; `argmax` takes the lowest
    of equal ones. The votes themselves carry float32 rounding of the similarities.

    Args:
        query: (n, D) features of any scale.
        bank: (m, D).
        bank_labels: (m,) classes, any dtype.
        num_classes: C.
        k: neighbours.
        temperature: T, 0.07 in InstDisc and DINO.
        bank_index: (m,) sample indices that order equal similarities; of rows that share one the
            first counts. None: the position among all ranks' rows.

    Returns:
        (n, C) float64.

    Raises:
        ValueError: k larger than the bank, a label outside 0..C-1, features that are not finite.
    """
    _check_settings([(k, temperature)])
    query, rows = _prepare(query, bank, bank_labels, num_classes, bank_index)
    found = _neighbours(query, rows, num_classes, [(k, temperature)])
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
    """Accuracy over all ranks' queries, for several (k, temperature) from one search.

    Args:
        query: (n, D) features, each sample on one rank only.
        query_labels: (n,) classes, any dtype.
        bank: (m, D).
        bank_labels: (m,) classes.
        num_classes: C.
        settings: pairs (k, temperature).
        bank_index: as for `knn_predict`.

    Returns:
        One fraction in [0, 1] for each setting, the same on every rank.
    """
    _check_settings(settings)
    query, rows = _prepare(query, bank, bank_labels, num_classes, bank_index)
    found = _neighbours(query, rows, num_classes, settings)
    labels = query_labels.to(query.device, torch.int64)
    right = torch.zeros(len(settings) + 1, dtype=torch.int64, device=query.device)
    right[-1] = len(query)
    for start in range(0, len(query), QUERY_TILE):
        tile = _Neighbours(*(x[start : start + QUERY_TILE] for x in found))
        truth = labels[start : start + QUERY_TILE]
        for column, (k, temperature) in enumerate(settings):
            predicted = _vote(tile, num_classes, k, temperature).argmax(1)
            right[column] += (predicted == truth).sum()
    *correct, total = sum_over_ranks(right).tolist()
    if total == 0:
        raise ValueError("kNN wants at least one query, got none on any rank")
    return [count / total for count in correct]
