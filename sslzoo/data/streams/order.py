"""The shuffled order of samples in shards, which a run may enter anywhere.

S shards, N samples. Sample i of the set is (shard, offset), with the shards one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslzoo.checks import check_at_least
from sslzoo.eval.fingerprint import text_digest
from sslzoo.random import run_keys

Blocks = Callable[[int], Sequence[int]]  # shard -> sizes of its runs of samples


class ShardOrder:
    """An epoch's order of the samples: shards, then their blocks, then samples are shuffled.

    In each epoch the shards are permuted and taken `shuffle_shards` at a time. The blocks of these
    are permuted (those of a forward shard keep their order) and taken until they have
    `shuffle_samples` samples, which are permuted. So every sample comes once, few shards are open,
    and the order is a function of (seed, epoch) alone. To enter it anywhere takes one pass over the
    S counts, and no data.

    Args:
        counts: (S,) int64 samples per shard.
        blocks: gives the sizes of a shard's blocks, whose sum is its count.
        shuffle_shards: number of shards that are mixed; 0: the order 0..N-1 in each epoch.
        shuffle_samples: number of samples that are permuted together; 1: blocks in order.
        is_forward: whether the blocks of each shard keep their order.
        ahead: called with the shards that are mixed next, such as to download them.
        identity: gives what tells the shards from others, such as the names of their files.
    """

    def __init__(
        self,
        counts: np.ndarray,
        blocks: Blocks,
        shuffle_shards: int,
        shuffle_samples: int,
        is_forward: bool = False,
        ahead: Callable[[list[int]], None] | None = None,
        identity: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        check_at_least("shuffle_shards", shuffle_shards, 0)
        check_at_least("shuffle_samples", shuffle_samples, 1)
        self.counts, self.blocks = counts, blocks
        self.shuffle_shards, self.shuffle_samples = shuffle_shards, shuffle_samples
        self.is_forward = is_forward
        self._ahead, self._identity = ahead, identity
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def digest(self) -> str:
        """Hash of the counts and of how they are shuffled."""
        parts = [self.counts.tolist(), self.shuffle_shards, self.shuffle_samples]
        return text_digest(map(str, parts))

    @cached_property
    def files(self) -> str:
        """Hash of the shards' identity and of their blocks."""
        blocks = (str(list(self.blocks(shard))) for shard in range(len(self.counts)))
        return text_digest([*self._identity(), *blocks])

    def state(self, seed: int, epoch: int, first: int) -> dict[str, Any]:
        """The hashes, and the shard and offset of the sample at position `first`.

        These two are None at the end of the epoch.
        """
        state: dict[str, Any] = {"order": self.digest(), "files": self.files}
        piece = next(self.pieces(seed, epoch, first), None)
        if piece is None:
            return {**state, "shard": None, "offset": None}
        sample = int(piece[0])
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return {**state, "shard": shard, "offset": sample - int(self.starts[shard])}

    def shards(self, seed: int, epoch: int) -> np.ndarray:
        """The shards in the order in which an epoch comes to them, (S,) int64."""
        order = np.arange(len(self.counts))
        if not self.shuffle_shards:
            return order
        keys = run_keys(seed, "shards", epoch)
        return order[keys.permutation("order", len(order))[0].numpy()]

    def pieces(self, seed: int, epoch: int, first: int = 0) -> Iterator[Tensor]:
        """The epoch's samples from position `first` on, in pieces (n,) int64."""
        order = self.shards(seed, epoch)
        each = max(1, self.shuffle_shards)
        passed = 0
        for start in range(0, len(order), each):
            group = order[start : start + each]
            total = int(self.counts[group].sum())
            if passed + total > first:
                if self._ahead is not None:
                    self._ahead(order[start + each : start + 2 * each].tolist())
                for piece in self._group(group, seed, epoch, start):
                    if passed + len(piece) > first:
                        yield piece[max(0, first - passed) :]
                    passed += len(piece)
            else:
                passed += total

    def _group(self, group: np.ndarray, seed: int, epoch: int, start: int) -> Iterator[Tensor]:
        blocks = [
            (int(self.starts[shard]) + before, size, shard)
            for shard in group.tolist()
            for before, size in _offsets(self.blocks(shard))
        ]
        keys = run_keys(seed, "blocks", epoch, start)
        if self.shuffle_shards and blocks:
            mixed = [blocks[i] for i in keys.permutation("order", len(blocks))[0].tolist()]
            blocks = _forward(mixed, blocks) if self.is_forward else mixed
        piece: list[Tensor] = []
        size = number = 0
        for i, (begin, length, _) in enumerate(blocks, 1):
            piece.append(torch.arange(begin, begin + length))
            size += length
            if size >= self.shuffle_samples or (size and i == len(blocks)):
                whole = torch.cat(piece)
                if self.shuffle_shards and self.shuffle_samples > 1:
                    whole = whole[keys.fold("piece", number).permutation("order", size)[0]]
                yield whole
                piece, size, number = [], 0, number + 1


Block = tuple[int, int, int]  # first sample, size, shard


def _forward(mixed: list[Block], in_order: list[Block]) -> list[Block]:
    """The blocks of each shard in order, at the positions where it comes in `mixed`."""
    left: dict[int, list[Block]] = {}
    for block in reversed(in_order):
        left.setdefault(block[2], []).append(block)
    return [left[shard].pop() for *_, shard in mixed]


def _offsets(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    before = 0
    for size in sizes:
        yield before, size
        before += size


def even_blocks(count: int, size: int) -> list[int]:
    """Blocks of `size` samples, of which the last may be smaller."""
    whole, rest = divmod(count, size)
    return [size] * whole + [rest] * (rest > 0)
