"""Loaders: batches of a map-style set, with a position that is saved in the checkpoint.

They are iterables around a torch `DataLoader`, not subclasses of it. So a trainer neither replaces
their sampler nor warns about workers that an array in memory does not need. They never draw from
the global random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo import distributed
from sslzoo.batch import Batch
from sslzoo.data.batch_memory import collate_for
from sslzoo.data.sampler import KeyedSampler, ShardedBatchSampler
from sslzoo.eval.loaders import first_readable
from sslzoo.random import run_keys


class BatchSource(Protocol):
    """A map-style set that reads a whole batch at once."""

    def __len__(self) -> int: ...

    def __getitems__(self, index: list[int]) -> Batch: ...


class TrainLoader:
    """Keyed, shuffled training batches; resumes in the middle of an epoch.

    The position is saved as (epoch, batches returned), so batches that workers have prefetched do
    not count. Iteration begins at the first `next`, when the trainer has set the epoch (Lightning
    2.6 calls `iter` before).

    Args:
        dataset: a set whose `__getitems__` returns a `Batch`.
        sampler: chooses the batches.
        num_workers: 0 loads in the main process; workers stay alive across epochs.
        current_epoch: called when an iteration begins; without it, or if it returns None, the
            epoch is the sampler's, from `set_epoch`. (When a run counted in steps resumes from the
            end of an epoch, Lightning 2.6.6 sets the samplers one epoch too far, but its
            `current_epoch` is right.)
        has_ended: whether the epoch of the last returned batch has ended, such as after the first
            batches with `limit_train_batches`.
    """

    def __init__(
        self,
        dataset: BatchSource,
        sampler: KeyedSampler,
        num_workers: int = 0,
        current_epoch: Callable[[], int | None] | None = None,
        has_ended: Callable[[], bool] | None = None,
    ) -> None:
        self.sampler = sampler  # trainers call `set_epoch` on this attribute
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=sampler.rank_batch,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate_for(num_workers),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=self._generator,
        )
        self._current_epoch = current_epoch
        self._has_ended = has_ended
        self._epoch = 0
        self._position = 0
        self._resume_epoch: int | None = None  # the epoch in whose middle to resume

    @property
    def batch_size(self) -> int:
        """Batch size of this rank."""
        return self.sampler.rank_batch

    @property
    def epoch(self) -> int:
        """The epoch of the last returned batch."""
        return self._epoch

    def __len__(self) -> int:
        """Number of batches of a whole epoch, even while resuming within one."""
        return self.sampler.num_batches

    def __iter__(self) -> Iterator[Batch]:
        told = None if self._current_epoch is None else self._current_epoch()
        if told is not None:
            self.sampler.set_epoch(told)
        epoch = self.sampler.epoch
        resumed = self._resume_epoch is not None and self._resume_epoch == epoch
        if not resumed:
            self._position = 0
        self._resume_epoch = None
        self._epoch = epoch
        seed = run_keys(self.sampler.seed, "loader", epoch, distributed.rank())
        self._generator.manual_seed(int(seed.integers("workers", 1 << 31)))
        self.sampler.first_batch = self._position
        for batch in iter(self._loader):
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch, the same for every rank and number of ranks."""
        state = {
            "epoch": self._epoch,
            "position": self._position,
            "ended": self._has_ended is not None and self._has_ended(),
            "batch_size": self.sampler.batch_size,
            "num_samples": len(self._loader.dataset),  # type: ignore[arg-type]
            "seed": self.sampler.seed,
        }
        order = self.sampler.order
        if order is None:
            return state
        first = self._position * self.sampler.batch_size
        return {**state, **order.state(self.sampler.seed, self._epoch, first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last returned batch, or with the next epoch.

        Raises:
            ValueError: the position is in the middle of an epoch with other batches.
        """
        own = self.state_dict()
        finished = bool(state.get("ended")) or state["position"] >= len(self)
        for name in ("batch_size", "num_samples", "seed"):
            if not finished and state["position"] and state[name] != own[name]:
                raise ValueError(
                    f"{name} must be {state[name]} to resume in the middle of the checkpoint's "
                    f"epoch, got {own[name]}; or use a checkpoint from the end of an epoch"
                )
        others = state.get("order") != own.get("order")
        others |= "files" in state and state["files"] != own.get("files")  # not in older ones
        if not finished and state["position"] and others:
            raise ValueError(
                "the shards, shuffle_shards and shuffle_samples must be those of the checkpoint to "
                "resume in the middle of its epoch, got others; or use a checkpoint from the end "
                "of an epoch"
            )
        self._epoch = state["epoch"] + finished
        self._position = 0 if finished else state["position"]
        self._resume_epoch = self._epoch
        self.sampler.set_epoch(self._epoch)

    def close(self) -> None:
        """Stop the workers; the next iteration starts new ones."""
        self._loader._iterator = None
        self._loader.collate_fn = collate_for(self._loader.num_workers)  # for the new ones


class EvalLoader:
    """Evaluation batches: every sample once, whole batches distributed over the ranks.

    Args:
        dataset: a set whose `__getitems__` returns a `Batch`.
        batch_size: size of each batch, for any number of ranks.
        num_workers: 0 loads in the main process; workers end with the iteration.
        rank: rank of this process; None: that of the process group.
        world: number of ranks; None: that of the process group.
        order: (N,) int64 order of the samples, such as by length; None: 0..N-1.
    """

    def __init__(
        self,
        dataset: BatchSource,
        batch_size: int,
        num_workers: int = 0,
        rank: int | None = None,
        world: int | None = None,
        order: Tensor | None = None,
    ) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=ShardedBatchSampler(len(dataset), batch_size, rank, world, order),
            num_workers=num_workers,
            collate_fn=collate_for(num_workers),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Number of batches of this rank."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        self._loader.collate_fn = collate_for(self._loader.num_workers)  # for new workers
        return iter(self._loader)


class SingleBatchLoader:
    """A readable sample, so that a trainer calls its validation hooks; callbacks evaluate.

    Args:
        dataset: a non-empty set whose `__getitems__` returns a `Batch`.
    """

    def __init__(self, dataset: BatchSource) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield first_readable(len(self._dataset), 1, self._dataset.__getitems__)
