"""Samplers: the same global batches for any number of ranks.

N samples, W ranks, B the global batch. Global batch t of epoch e is a function of (seed, e, t)
alone: rank r takes the r-th contiguous block of it. Nothing is padded and nothing comes twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, Sampler

from sslzoo import distributed
from sslzoo.random import run_keys


class KeyedSampler(DistributedSampler[int]):
    """This rank's part of a keyed permutation, block after block of the global batch.

    A `DistributedSampler`, so that trainers leave it in place. Cut into lists of `rank_batch`
    indices (the last one may be shorter), its indices are this rank's batches.

    Args:
        num_samples: N.
        batch_size: B, over all ranks; W must divide it.
        seed: of the permutations.
        drop_last: leave out the last global batch where it is shorter than B. Otherwise its rows
            are split over the ranks, whose parts then differ by at most one row.
        shuffle: False gives the order 0..N-1 in each epoch.
        rank: this process's, from the process group by default.
        world: W, from the process group by default.
        groups: (N,) int64; a global batch is then of one group (such as a speaker), and what a
            group has left over sits out the epoch. Needs drop_last and shuffle.

    Raises:
        ValueError: W does not divide B, B is larger than N, the short last batch has fewer rows
            than there are ranks, or no group fills a batch.
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
    ) -> None:
        world = distributed.world_size() if world is None else world
        rank = distributed.rank() if rank is None else rank
        _check_batch(num_samples, batch_size, world)
        last = num_samples % batch_size
        if not drop_last and 0 < last < world:
            raise ValueError(
                f"the last global batch has {last} samples for {world} ranks: some would get none; "
                f"use drop_last=True, or a batch_size (got {batch_size}) that leaves none or at "
                f"least {world} of {num_samples} samples"
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
        self.first_batch = 0  # where the next iteration begins; set by the loader on a resume
        self.shared_epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers read it
        self._total = num_samples
        self._groups = groups
        if groups is not None:
            self._check_groups(groups)

    @property
    def num_batches(self) -> int:
        """Global batches of an epoch."""
        full, last = self._blocks()
        return full + (0 if self.drop_last or last == 0 else 1)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose permutation the next iteration follows."""
        self.epoch = epoch
        self.shared_epoch.fill_(epoch)

    def __len__(self) -> int:
        full, last = self._blocks()
        return full * self.rank_batch + (0 if self.drop_last else self._share(last)[1])

    def __iter__(self) -> Iterator[int]:
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

    def _blocks(self) -> tuple[int, int]:
        """Whole global batches of an epoch, and the rows of a short last one."""
        if self._groups is None:
            return divmod(self._total, self.batch_size)
        counts = torch.unique(self._groups, return_counts=True)[1]
        return int((counts // self.batch_size).sum()), 0

    def _grouped(self, order: Tensor, groups: Tensor) -> Tensor:
        """(batches, B) rows, group after group, each group's in the order given."""
        order = order[groups[order].argsort(stable=True)]
        _, counts = torch.unique(groups, return_counts=True)
        parts = order.split(counts.tolist())
        whole = [part[: len(part) // self.batch_size * self.batch_size] for part in parts]
        return torch.cat(whole).view(-1, self.batch_size)

    def _check_groups(self, groups: Tensor) -> None:
        if groups.shape != (self._total,) or not (self.drop_last and self.shuffle):
            raise ValueError(
                f"a group for each of {self._total} samples, drop_last and shuffle wanted, got "
                f"{tuple(groups.shape)}, {self.drop_last} and {self.shuffle}"
            )
        if not self._blocks()[0]:
            largest = int(torch.unique(groups, return_counts=True)[1].max())
            raise ValueError(
                f"batches of one group want a group of {self.batch_size} samples (batch_size), the "
                f"largest has {largest}"
            )

    def _share(self, rows: int) -> tuple[int, int]:
        """Where this rank's contiguous share of `rows` begins, and how long it is."""
        each, more = divmod(rows, self.num_replicas)
        return self.rank * each + min(self.rank, more), each + (self.rank < more)


class ShardedBatchSampler(Sampler[list[int]]):
    """Whole batches in order: rank r has batches r, r + W, ... of the sequence.

    What stands in a batch does not depend on W, so neither does a feature of it.

    Args:
        num_samples: N, each once.
        batch_size: of each batch; the last may be shorter.
        order: (N,) int64, taken instead of 0..N-1.
        rank: this process's, from the process group by default.
        world: W, from the process group by default.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        rank: int | None = None,
        world: int | None = None,
        order: Tensor | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch needs at least 1 sample, got batch_size={batch_size}")
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


def _check_batch(num_samples: int, batch_size: int, world: int) -> None:
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch_size is the global batch and must be a multiple of the {world} rank(s), "
            f"got {batch_size}"
        )
    if batch_size > num_samples:
        raise ValueError(
            f"batch_size must be at most the {num_samples} samples of the training set, "
            f"got {batch_size}"
        )
