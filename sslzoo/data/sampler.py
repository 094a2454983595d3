"""Samplers: the same global batches for any number of ranks.

N samples, W ranks, B the global batch size. Global batch t of epoch e is a function of (seed, e, t)
alone, and rank r takes its r-th contiguous block. No sample is padded or repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, Sampler

from sslzoo import distributed
from sslzoo.checks import check_at_least
from sslzoo.random import run_keys


class Order(Protocol):
    """The order of the samples in each epoch, where it is not one permutation of all."""

    def pieces(self, seed: int, epoch: int, first: int) -> Iterable[Tensor]:
        """The epoch's samples from position `first` on, in pieces (n,) int64."""

    def state(self, seed: int, epoch: int, first: int) -> dict[str, Any]:
        """What a checkpoint tells of position `first`, with a hash of the order as "order"."""


class KeyedSampler(DistributedSampler[int]):
    """Shuffle with a keyed permutation and give this rank's block of each global batch.

    It is a `DistributedSampler`, so trainers do not replace it. Consecutive runs of `rank_batch`
    indices (the last may be shorter) are this rank's batches.

    Args:
        num_samples: N.
        batch_size: B, over all ranks; a multiple of W.
        seed: seed of the permutations.
        drop_last: drop the last global batch if it is smaller than B. Otherwise its rows are split
            over the ranks, whose parts differ by at most one row.
        shuffle: False: the order 0..N-1 in each epoch.
        rank: rank of this process; None: that of the process group.
        world: W; None: that of the process group.
        groups: (N,) int64; every global batch is then drawn from one group (such as a speaker), and
            the remainder of a group is skipped in that epoch. Needs drop_last and shuffle.
        order: gives each epoch's order in place of the permutation, such as that of shards.

    Raises:
        ValueError: W does not divide B, B is larger than N, the last batch has fewer rows than
            ranks, or no group fills a batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = True,
        shuffle: bool = True,
        rank: int | None = None,
        world: int | None = None,
        groups: Tensor | None = None,
        order: Order | None = None,
    ) -> None:
        world = distributed.world_size() if world is None else world
        rank = distributed.rank() if rank is None else rank
        _check_batch(num_samples, batch_size, world)
        last = num_samples % batch_size
        if not drop_last and 0 < last < world:
            raise ValueError(
                f"the last global batch must have at least one sample for each of {world} ranks, "
                f"got {last} of {num_samples} samples with batch_size {batch_size}; use "
                "drop_last=True or another batch_size"
            )
        super().__init__(
            range(num_samples),  # type: ignore[arg-type]
            num_replicas=world,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self.batch_size = batch_size
        self.rank_batch = batch_size // world
        self.first_batch = 0  # first batch of the next iteration; the loader sets it on a resume
        self.shared_epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # for workers
        self._total = num_samples
        self._groups = groups
        self.order = order
        if groups is not None:
            self._check_groups(groups)

    @property
    def num_batches(self) -> int:
        """Number of global batches of an epoch."""
        full, last = self._blocks()
        return full + (0 if self.drop_last or last == 0 else 1)

    @property
    def last_batch(self) -> int:
        """Samples of an epoch's incomplete last global batch; 0 without one."""
        return 0 if self.drop_last else self._blocks()[1]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose permutation the next iteration uses."""
        self.epoch = epoch
        self.shared_epoch.fill_(epoch)

    def __len__(self) -> int:
        full, last = self._blocks()
        return full * self.rank_batch + (0 if self.drop_last else self._share(last)[1])

    def __iter__(self) -> Iterator[int]:
        if self.order is not None:
            return self._in_order(self.order)
        order = torch.arange(self._total)
        if self.shuffle:
            keys = run_keys(self.seed, "sampler", self.epoch)
            order = keys.permutation("order", self._total)[0]
        full, last = self._blocks()
        if self._groups is not None:
            order = self._grouped(order, self._groups)
            order = order[run_keys(self.seed, "groups", self.epoch).permutation("order", full)[0]]
            order = order.flatten()
        blocks = order[: full * self.batch_size].view(full, self.num_replicas, self.rank_batch)
        mine = [blocks[self.first_batch :, self.rank].flatten()]
        if not self.drop_last and self.first_batch <= full:
            start, count = self._share(last)
            mine.append(order[full * self.batch_size + start :][:count])
        return iter(torch.cat(mine).tolist())

    def _in_order(self, order: Order) -> Iterator[int]:
        pieces = order.pieces(self.seed, self.epoch, self.first_batch * self.batch_size)
        for batch in _batches(pieces, self.batch_size):
            if len(batch) == self.batch_size or not self.drop_last:
                start, count = self._share(len(batch))
                yield from batch[start : start + count].tolist()

    def _blocks(self) -> tuple[int, int]:
        """Number of complete global batches of an epoch, and rows of an incomplete last one."""
        if self._groups is None:
            return divmod(self._total, self.batch_size)
        counts = torch.unique(self._groups, return_counts=True)[1]
        return int((counts // self.batch_size).sum()), 0

    def _grouped(self, order: Tensor, groups: Tensor) -> Tensor:
        """(batches, B) rows, group by group, each group in the given order."""
        order = order[groups[order].argsort(stable=True)]
        _, counts = torch.unique(groups, return_counts=True)
        parts = order.split(counts.tolist())
        whole = [part[: len(part) // self.batch_size * self.batch_size] for part in parts]
        return torch.cat(whole).view(-1, self.batch_size)

    def _check_groups(self, groups: Tensor) -> None:
        if groups.shape != (self._total,) or not (self.drop_last and self.shuffle):
            raise ValueError(
                f"groups must be ({self._total},) with drop_last and shuffle True, got "
                f"{tuple(groups.shape)}, {self.drop_last} and {self.shuffle}"
            )
        if not self._blocks()[0]:
            largest = int(torch.unique(groups, return_counts=True)[1].max())
            raise ValueError(
                f"batch_size must be at most {largest} (the largest group's size), got "
                f"{self.batch_size}"
            )

    def _share(self, rows: int) -> tuple[int, int]:
        """First row and length of this rank's contiguous part of `rows`."""
        each, more = divmod(rows, self.num_replicas)
        return self.rank * each + min(self.rank, more), each + (self.rank < more)


class ShardedBatchSampler(Sampler[list[int]]):
    """Batches in order: rank r gets batches r, r + W, and so on.

    The contents of a batch do not depend on W, so neither do its features.

    Args:
        num_samples: N.
        batch_size: size of each batch; the last may be smaller.
        rank: rank of this process; None: that of the process group.
        world: W; None: that of the process group.
        order: (N,) int64; None: 0..N-1.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        rank: int | None = None,
        world: int | None = None,
        order: Tensor | None = None,
    ) -> None:
        check_at_least("batch_size", batch_size, 1)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.order = range(num_samples) if order is None else order.tolist()
        self.rank = distributed.rank() if rank is None else rank
        self.world = distributed.world_size() if world is None else world

    def _starts(self) -> range:
        stride = self.batch_size * self.world
        return range(self.rank * self.batch_size, self.num_samples, stride)

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts():
            yield list(self.order[start : start + self.batch_size])


def _batches(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of all pieces in batches (size,), of which the last may be smaller."""
    rest = torch.empty(0, dtype=torch.int64)
    for piece in pieces:
        *whole, rest = torch.cat([rest, piece]).split(size)
        yield from whole
    if len(rest):
        yield rest


def _check_batch(num_samples: int, batch_size: int, world: int) -> None:
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch_size (the global batch) must be a positive multiple of the {world} rank(s), "
            f"got {batch_size}"
        )
    if batch_size > num_samples:
        raise ValueError(
            f"batch_size must be at most {num_samples} (the size of the training set), got "
            f"{batch_size}"
        )
