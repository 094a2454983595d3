"""Exact nearest neighbors by cosine similarity with the bank sharded over ranks.

Rows are normalized and rounded to multiples of 2^-24, so that a float64 matrix product of them has
no rounding error, whatever its shape; the similarity s is that number as float32, and equal s are
ordered by bank index. The neighbors are thus a function of the features alone, not of tiles, ranks
or threads. A search in float32 is faster and may differ by the rounding of its products.

Every search is collective: each rank passes its own rows of the bank and its own queries, in any
number. Shapes: n queries and m bank rows of this rank, D width, k neighbors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.distributed import Rows, gather_rows, rank, row_layout, world_size

GRID = 2.0**24  # float32 holds all multiples of 1/GRID up to 1; their dot products fit in float64
INDEX_BITS = 32  # low bits of a sortable key: complement of the bank index
GROUPS = (32, 8)  # sizes of groups of which only the largest similarity enters a selection
KEYED = 64  # queries per chunk that is turned into sortable keys
LOWEST = torch.iinfo(torch.int64).min  # a key below every real one
QUERY_TILE = 768
# float64 numbers of candidates at a time: a core's cache, or few launches.
RESCORED = {"cpu": 1 << 18, "cuda": 1 << 23}
FEWER = 8  # kernel launches limit an accelerator: it takes that many tiles of rows at once
BANK_TILE = 4096  # bank rows per product, so that their copies stay in the cache
BLOCK = 65536  # columns per selection: 192 MiB per rank, 1.5 GiB on a GPU


def at_once(tile: int, device: torch.device) -> int:
    """Number of rows that a device processes at once, given the CPU's tile size."""
    return tile if device.type == "cpu" else tile * FEWER


class Bank(NamedTuple):
    """This rank's rows of the bank, sorted by index."""

    rows: Tensor  # (m, D) float32 on the grid, in the order of index
    label: Tensor  # (m,) int64
    index: Tensor  # type: ignore[assignment]  # (m,) int64, unique over all ranks


class Neighbors(NamedTuple):
    """The nearest rows of each query, best first."""

    key: Tensor  # (n, k) int64, descending: similarity, then bank index ascending
    label: Tensor  # (n, k) int64


def on_grid(x: Tensor) -> Tensor:
    """L2-normalize rows in float64 and round to the grid.

    Shapes: (n, D) -> (n, D) float32; NaN where a row is not finite.
    """
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    tile = at_once(QUERY_TILE, x.device)
    for start in range(0, x.shape[0], tile):  # float64 copies stay in the cache
        rows = x[start : start + tile].double()
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        rows = rows * (GRID / norm)  # not in-place: float64 features belong to the caller
        out[start : start + tile] = rows.round_().mul_(1 / GRID)
    return out


def _keys(similarity: Tensor, index: Tensor) -> Tensor:
    """int64 keys that sort by (similarity, -index). Shapes: both (n, c) or broadcastable to it."""
    bits = (similarity + 0.0).view(torch.int32).to(torch.int64)  # + 0.0: -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered << INDEX_BITS) | ((1 << INDEX_BITS) - 1 - index)


def similarity_of(key: Tensor) -> Tensor:
    """The float32 similarity stored in a key."""
    ordered = key >> INDEX_BITS
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(torch.int32).view(torch.float32)


def _index_of(key: Tensor) -> Tensor:
    """The bank index stored in a key."""
    return ((1 << INDEX_BITS) - 1) - (key & ((1 << INDEX_BITS) - 1))


def _groups(values: Tensor, size: int) -> Tensor:
    """View of (n, c) as groups of columns, (n, c / size, size).

    On a CPU the columns of a group share a cache line; on a GPU the first columns of all groups
    are adjacent, since its threads read adjacent memory together.
    """
    if values.device.type == "cpu":
        return values.unflatten(1, (-1, size))
    return values.unflatten(1, (size, -1)).mT


def _select(similarity: Tensor, k: int, largest: Tensor | None) -> Tensor:
    """Columns of the k largest values per row, (n, k), unordered.

    Args:
        similarity: (n, c), c a multiple of the largest of GROUPS.
        k: number of columns.
        largest: the largest of each GROUPS[0] columns; None: equal values are ordered by position.
    """
    if largest is not None:
        return _largest(similarity, k, largest)
    position = torch.arange(similarity.shape[1], device=similarity.device)
    tiles = similarity.split(at_once(KEYED, similarity.device))
    return torch.cat([_largest(_keys(tile, position), k) for tile in tiles])


def _largest(values: Tensor, k: int, largest: Tensor | None = None) -> Tensor:
    """Columns of the k largest values per row, unordered, by a search over groups.

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
        largest = None  # `largest` was for the first stage only
    column = values.topk(min(k, values.shape[1]), dim=1, sorted=False).indices
    for size, next_group, next_member, best in reversed(chosen):
        group = column // size
        column = best.gather(1, group) * next_group + (column - group * size) * next_member
    return column


def _none(n: int, k: int, device: torch.device) -> Neighbors:
    """Placeholders for k neighbors, with keys below every real one."""
    empty = torch.full((n, k), LOWEST, dtype=torch.int64, device=device)
    return Neighbors(empty, torch.zeros_like(empty))


def _merge(parts: Sequence[Neighbors], k: int) -> Neighbors:
    """The k best of all parts, best first, padded with placeholders if there are fewer."""
    found = sum(part.key.shape[1] for part in parts)
    if found < k:
        parts = [*parts, _none(parts[0].key.shape[0], k - found, parts[0].key.device)]
    key = torch.cat([part.key for part in parts], dim=1)
    label = torch.cat([part.label for part in parts], dim=1)
    key, order = key.topk(k, dim=1)
    return Neighbors(key, label.gather(1, order))


def _whole_groups(columns: int) -> int:
    """Round up to a multiple of GROUPS[0]."""
    return -(-columns // GROUPS[0]) * GROUPS[0]


def _product_columns(columns: int, device: torch.device) -> int:
    """Columns per matrix product: few on a CPU, for its cache, and all of them on a GPU."""
    return _whole_groups(BANK_TILE) if device.type == "cpu" else columns


def _fill(out: Tensor, query: Tensor, rows: Tensor, exact: bool) -> Tensor | None:
    """Write query @ rows.T to out[:, :len(rows)] and -inf to the columns beyond.

    Returns:
        The largest of each GROUPS[0] columns, computed while they are in the cache; None if exact.
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
    """Exact similarity of selected rows to each query. Shapes: column (n, c) -> (n, c) float32."""
    out = torch.empty(column.shape, dtype=torch.float32, device=query.device)
    limit = RESCORED.get(query.device.type, RESCORED["cpu"])
    step = max(1, limit // (column.shape[1] * query.shape[1]))
    for start in range(0, len(query), step):
        few = slice(start, start + step)
        chosen = rows[column[few]].double()
        out[few] = torch.bmm(chosen, query[few].double()[:, :, None]).squeeze(2)
    return out


def _search_here(query: Tensor, bank: Bank, k: int, exact: bool, buffer: Tensor) -> Neighbors:
    """The k best of this rank's rows per query, padded with the lowest key."""
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
    """Turn off TF32 and bfloat16 in float32 products, as `float32_error` assumes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def search(query: Tensor, bank: Bank, k: int, exact: bool) -> Neighbors:
    """Find the k best rows of all ranks' banks for this rank's queries.

    Args:
        query: (n, D) from `on_grid`.
        bank: this rank's rows.
        k: number of neighbors, at most the number of rows of all ranks.
        exact: True: search in float64, ties broken by index; False: in float32, within
            `float32_error`.
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
    """Select the k best by exact similarity among the candidates of a float32 search.

    Args:
        query: (n, D) from `on_grid`.
        bank: this rank's rows.
        found: (n, more than k) candidates by float32 similarity, best first.
        k: number of neighbors to keep.

    Returns:
        The neighbors, and (n,) bool: True where they are provably those of an exact search, since
        no row that was left out can reach the last of them.
    """
    keys = [found.key[:0]]
    for own, tile in _tiles(row_layout(query.shape[0]), query.device):
        wanted = _index_of(gather_rows(found.key[own], tile))
        row = torch.searchsorted(bank.index, wanted).clamp_max(max(len(bank.index) - 1, 0))
        here = torch.full_like(wanted, LOWEST)
        if len(bank.index):
            similarity = _rescored(gather_rows(query[own], tile), bank.rows, row)
            here = torch.where(bank.index[row] == wanted, _keys(similarity, wanted), LOWEST)
        keys.append(_from_all_ranks(here, tile).amax(0))
    key, order = torch.cat(keys).topk(k, dim=1)
    cut = similarity_of(found.key[:, -1])
    sure = similarity_of(key[:, -1]) > cut + float32_error(query.shape[1])
    return Neighbors(key, found.label.gather(1, order)), sure


def _query_tile(device: torch.device) -> int:
    """Queries per rank and tile: on a GPU, similarities to a block take 1.5 GiB up to 8 ranks."""
    return max(QUERY_TILE, at_once(QUERY_TILE, device) // world_size())


def _tiles(layout: Rows, device: torch.device) -> Iterator[tuple[slice, Rows]]:
    """Tiles of this rank's queries and of all ranks' queries, equally many on each rank."""
    tile = _query_tile(device)
    for start in range(0, max(layout.counts), tile):
        counts = tuple(min(max(n - start, 0), tile) for n in layout.counts)
        yield slice(start, start + tile), Rows(counts, sum(counts[: rank()]), sum(counts))


def _from_all_ranks(x: Tensor, tile: Rows) -> Tensor:
    """Collect all ranks' results for this rank's queries. (all queries, c) -> (W, own, c)."""
    return gather_rows(x[None], Rows((1,) * world_size(), rank(), world_size()))[:, tile.own]


def first_occurrence(index: Tensor, layout: Rows | None = None) -> Tensor:
    """Positions of this rank's rows whose index appears in no earlier row, ascending.

    Args:
        index: (m,) int64 sample indices, some repeated by samplers that pad.
        layout: the rows' layout from `row_layout(m)`.
    """
    layout = layout or row_layout(len(index))
    ordered, position = gather_rows(index, layout).sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    keep = torch.empty_like(first)
    keep[position] = first
    return keep[layout.own].nonzero().squeeze(1)
