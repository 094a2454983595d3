"""Nearest neighbors by cosine: exact, in tiles, with the bank sharded over ranks.

Rows are normalized onto a grid of 2^-24, so that the products and sums of a float64 matrix product
are free of rounding, whatever its shape; the similarity s is that number as float32; equal s are
ordered by bank index. So the neighbors are a function of the features alone, not of tiles, ranks
or threads. A search in float32 is faster and may differ by the rounding of its products.

Every search is collective: each rank passes its rows of the bank and its queries, any number of
each. Shapes: n queries and m bank rows of this rank, D width, k neighbors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.distributed import Rows, gather_rows, rank, row_layout, world_size

GRID = 2.0**24  # float32 holds all multiples of 1/GRID up to 1; their dot products fit in float64
INDEX_BITS = 32  # of a sortable key: similarity above, complement of the bank index below
GROUPS = (32, 8)  # similarities of which only the largest enters a selection
KEYED = 64  # queries whose similarities are sortable keys at a time
LOWEST = torch.iinfo(torch.int64).min  # a key below every real one
QUERY_TILE = 768
# float64 numbers of candidates at a time: a core's cache, or few launches.
RESCORED = {"cpu": 1 << 18, "cuda": 1 << 23}
FEWER = 8  # an accelerator waits for launches: it takes that many tiles of rows at once
BANK_TILE = 4096  # rows of the bank in one product: their float64, or their similarities, are hot
BLOCK = 65536  # columns among which one selection is made: 192 MiB a rank, 1.5 GiB on a GPU


def at_once(tile: int, device: torch.device) -> int:
    """Rows that this device takes at a time, of a CPU's tile."""
    return tile if device.type == "cpu" else tile * FEWER


class Bank(NamedTuple):
    """This rank's rows, in the order of their index."""

    rows: Tensor  # (m, D) float32 on the grid, in the order of index
    label: Tensor  # (m,) int64
    index: Tensor  # type: ignore[assignment]  # (m,) int64, unique over all ranks


class Neighbors(NamedTuple):
    """The best rows of each query, in order."""

    key: Tensor  # (n, k) int64, descending: similarity, then bank index ascending
    label: Tensor  # (n, k) int64


def on_grid(x: Tensor) -> Tensor:
    """L2-normalize rows in float64 and round to the grid; NaN where a row is not finite.

    Shapes: (n, D) -> (n, D) float32.
    """
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    tile = at_once(QUERY_TILE, x.device)
    for start in range(0, x.shape[0], tile):  # few rows: float64 stays in the cache
        rows = x[start : start + tile].double()
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        rows = rows * (GRID / norm)  # not in place: float64 features are the caller's
        out[start : start + tile] = rows.round_().mul_(1 / GRID)
    return out


def _keys(similarity: Tensor, index: Tensor) -> Tensor:
    """int64 that sorts by (similarity, -index). Shapes: both (n, c) or broadcastable to it."""
    bits = (similarity + 0.0).view(torch.int32).to(torch.int64)  # + 0.0: -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered << INDEX_BITS) | ((1 << INDEX_BITS) - 1 - index)


def similarity_of(key: Tensor) -> Tensor:
    """The float32 in a key."""
    ordered = key >> INDEX_BITS
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(torch.int32).view(torch.float32)


def _index_of(key: Tensor) -> Tensor:
    """The bank index in a key."""
    return ((1 << INDEX_BITS) - 1) - (key & ((1 << INDEX_BITS) - 1))


def _groups(values: Tensor, size: int) -> Tensor:
    """Columns in groups, a view (n, c / size, size) of (n, c).

    A CPU wants those of a group in one line of its cache, a GPU the first of all groups side by
    side, for its threads read neighbors together.
    """
    if values.device.type == "cpu":
        return values.unflatten(1, (-1, size))
    return values.unflatten(1, (size, -1)).mT


def _select(similarity: Tensor, k: int, largest: Tensor | None) -> Tensor:
    """Columns of the k largest of each row, (n, k), in no order.

    Args:
        similarity: (n, c), c a multiple of the largest of GROUPS.
        k: how many.
        largest: of each GROUPS[0] columns; None: order equal ones by position.
    """
    if largest is not None:
        return _largest(similarity, k, largest)
    position = torch.arange(similarity.shape[1], device=similarity.device)
    tiles = similarity.split(at_once(KEYED, similarity.device))
    return torch.cat([_largest(_keys(tile, position), k) for tile in tiles])


def _largest(values: Tensor, k: int, largest: Tensor | None = None) -> Tensor:
    """Columns of the k largest of each row, in no order.

    The k groups with the largest members contain the k largest columns: each of k better groups
    holds a better column than any of a group left out.

    Shapes: values (n, c), largest (n, c / GROUPS[0]), if known -> (n, k) int64.
    """
    row = torch.arange(len(values), device=values.device)[:, None]
    chosen: list[tuple[int, int, int, Tensor]] = []  # size and steps of groups, the best of them
    for size in GROUPS:
        if values.shape[1] // size > k:
            grouped = _groups(values, size)
            tops = grouped.amax(2) if largest is None else largest
            best = tops.topk(k, dim=1, sorted=False).indices
            values = grouped[row, best].flatten(1)
            chosen.append((size, grouped.stride(1), grouped.stride(2), best))
        largest = None  # it was of the first stage
    column = values.topk(min(k, values.shape[1]), dim=1, sorted=False).indices
    for size, next_group, next_member, best in reversed(chosen):
        place = column // size
        column = best.gather(1, place) * next_group + (column - place * size) * next_member
    return column


def _none(n: int, k: int, device: torch.device) -> Neighbors:
    """Places for k neighbors not yet found, below every real one."""
    empty = torch.full((n, k), LOWEST, dtype=torch.int64, device=device)
    return Neighbors(empty, torch.zeros_like(empty))


def _merge(parts: Sequence[Neighbors], k: int) -> Neighbors:
    """The k best of all parts in order; parts with less than k together are filled up."""
    found = sum(part.key.shape[1] for part in parts)
    if found < k:
        parts = [*parts, _none(parts[0].key.shape[0], k - found, parts[0].key.device)]
    key = torch.cat([part.key for part in parts], dim=1)
    label = torch.cat([part.label for part in parts], dim=1)
    key, order = key.topk(k, dim=1)
    return Neighbors(key, label.gather(1, order))


def _whole_groups(columns: int) -> int:
    """The least multiple of GROUPS[0] that is not below."""
    return -(-columns // GROUPS[0]) * GROUPS[0]


def _product_columns(columns: int, device: torch.device) -> int:
    """Columns of one product: few stay in a CPU's cache; on a GPU, groups reach over all."""
    return _whole_groups(BANK_TILE) if device.type == "cpu" else columns


def _fill(out: Tensor, query: Tensor, rows: Tensor, exact: bool) -> Tensor | None:
    """out[:, :len(rows)] = query @ rows.T; the columns beyond become -inf.

    Returns:
        The largest of each GROUPS[0] columns, taken while they are in the cache; None if exact.
    """
    out[:, rows.shape[0] :] = -torch.inf
    if exact:
        for start in range(0, rows.shape[0], BANK_TILE):
            part = rows[start : start + BANK_TILE].double()
            out[:, start : start + part.shape[0]] = query.double() @ part.T
        return None
    largest = []
    step = _product_columns(out.shape[1], out.device)
    for start in range(0, out.shape[1], step):
        part, here = rows[start : start + step], out[:, start : start + step]
        torch.mm(query, part.T, out=here[:, : part.shape[0]])
        largest.append(_groups(here, GROUPS[0]).amax(2))
    return torch.cat(largest, dim=1)


def _rescored(query: Tensor, rows: Tensor, column: Tensor) -> Tensor:
    """The exact similarity of some rows to each query. Shapes: column (n, c) -> (n, c) float32."""
    out = torch.empty(column.shape, dtype=torch.float32, device=query.device)
    limit = RESCORED.get(query.device.type, RESCORED["cpu"])
    step = max(1, limit // (column.shape[1] * query.shape[1]))
    for start in range(0, len(query), step):
        few = slice(start, start + step)
        chosen = rows[column[few]].double()
        out[few] = torch.bmm(chosen, query[few].double()[:, :, None]).squeeze(2)
    return out


def _search_here(query: Tensor, bank: Bank, k: int, exact: bool, buffer: Tensor) -> Neighbors:
    """The k best of this rank's rows for every query; places left over hold the lowest key."""
    parts = [_none(query.shape[0], 0, query.device)]
    for start in range(0, bank.rows.shape[0], BLOCK):
        rows = bank.rows[start : start + BLOCK]
        columns = _whole_groups(rows.shape[0])
        similarity = buffer[: query.shape[0] * columns].view(query.shape[0], columns)
        largest = _fill(similarity, query, rows, exact)
        column = _select(similarity, k, largest)
        real = column < rows.shape[0]
        position = start + column.clamp_max(rows.shape[0] - 1)
        key = _keys(similarity.gather(1, column), bank.index[position])
        parts.append(Neighbors(torch.where(real, key, LOWEST), bank.label[position]))
        parts = [_merge(parts, k)]
    return parts[0] if bank.rows.shape[0] else _merge(parts, k)


def float32_error(width: int) -> float:
    """Bound of |float32 similarity - exact similarity| for D = `width`.

    Six standard deviations of D independent roundings of partial sums that grow to 1 (the most
    there can be), and the rounding of the result; a statistical bound, not the worst case D 2^-24.
    """
    return 2.0**-24 * (2 * width**0.5 + 4)


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 products: the error bound below is float32's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def search(query: Tensor, bank: Bank, k: int, exact: bool) -> Neighbors:
    """The k best rows of all ranks' banks for this rank's queries.

    Args:
        query: (n, D) from `on_grid`.
        bank: this rank's rows.
        k: at most the rows of all ranks.
        exact: float64, ties by index; else float32, within `float32_error`.
    """
    with _full_float32():
        layout = row_layout(query.shape[0])
        columns = min(_whole_groups(bank.rows.shape[0]), BLOCK)
        tile_rows = min(_query_tile(query.device), max(layout.counts))
        buffer = query.new_empty(tile_rows * world_size() * columns)
        found = [_none(0, k, query.device)]
        for own, tile in _tiles(layout, query.device):
            here = _search_here(gather_rows(query[own], tile), bank, k, exact, buffer)
            keys, labels = (_from_all_ranks(part, tile) for part in here)
            ranks = [Neighbors(key, label) for key, label in zip(keys, labels, strict=True)]
            found.append(_merge(ranks, k) if len(ranks) > 1 else ranks[0])
    return Neighbors(*(torch.cat(column) for column in zip(*found, strict=True)))


def rescore(query: Tensor, bank: Bank, found: Neighbors, k: int) -> tuple[Neighbors, Tensor]:
    """The k best by exact similarity of somewhat more than k that a float32 search found.

    Args:
        query: (n, D) from `on_grid`.
        bank: this rank's rows.
        found: (n, k + some) by float32, in order.
        k: neighbors wanted.

    Returns:
        The neighbors, and (n,) bool: True where they are the neighbors of an exact search, for
        nothing that was left out can reach the last of them.
    """
    keys = [found.key[:0]]
    for own, tile in _tiles(row_layout(query.shape[0]), query.device):
        wanted = _index_of(gather_rows(found.key[own], tile))
        place = torch.searchsorted(bank.index, wanted).clamp_max(max(len(bank.index) - 1, 0))
        here = torch.full_like(wanted, LOWEST)
        if len(bank.index):
            similarity = _rescored(gather_rows(query[own], tile), bank.rows, place)
            here = torch.where(bank.index[place] == wanted, _keys(similarity, wanted), LOWEST)
        keys.append(_from_all_ranks(here, tile).amax(0))
    key, order = torch.cat(keys).topk(k, dim=1)
    cut = similarity_of(found.key[:, -1])
    sure = similarity_of(key[:, -1]) > cut + float32_error(query.shape[1])
    return Neighbors(key, found.label.gather(1, order)), sure


def _query_tile(device: torch.device) -> int:
    """Queries of a rank at a time: a GPU's similarities to a block are 1.5 GiB up to 8 ranks."""
    return max(QUERY_TILE, at_once(QUERY_TILE, device) // world_size())


def _tiles(layout: Rows, device: torch.device) -> Iterator[tuple[slice, Rows]]:
    """This rank's queries some at a time, and all ranks' of that time; as often on each rank."""
    tile = _query_tile(device)
    for start in range(0, max(layout.counts), tile):
        counts = tuple(min(max(n - start, 0), tile) for n in layout.counts)
        yield slice(start, start + tile), Rows(counts, sum(counts[: rank()]), sum(counts))


def _from_all_ranks(x: Tensor, tile: Rows) -> Tensor:
    """What each rank holds of this rank's queries. Shapes: (all queries, c) -> (W, own, c)."""
    return gather_rows(x[None], Rows((1,) * world_size(), rank(), world_size()))[:, tile.own]


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
