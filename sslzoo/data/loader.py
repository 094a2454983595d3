"""Loaders: batches of a map-style set, with a position that a checkpoint can hold.

Both are iterables around a torch `DataLoader`, not subclasses of it: a trainer then neither
rebuilds them with another sampler nor asks for workers that an array in memory does not need.
Neither draws from the global random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo import distributed
from sslzoo.batch import Batch
from sslzoo.data.sampler import KeyedSampler, ShardedBatchSampler
from sslzoo.random import run_keys


class BatchSource(Protocol):
    """A map-style set that makes a whole batch at once."""

    def __len__(self) -> int: ...

    def __getitems__(self, index: list[int]) -> Batch: ...


def _as_it_is(batch: Any) -> Any:
    return batch


class TrainLoader:
    """Keyed, shuffled batches; resumes in the middle of an epoch.

    The place is saved as (epoch, batches handed out), so what workers have fetched ahead does
    not count. Iteration begins at the first `next`, when the trainer has set the epoch (Lightning
    2.6 calls `iter` before it does).

    Args:
        dataset: with `__getitems__` that gives a `Batch`.
        sampler: chooses the batches.
        num_workers: 0 loads in the main process; workers stay alive over epochs.
        current_epoch: asked when an iteration begins; without it, or where it answers None, the
            epoch is what `set_epoch` of the sampler was told last. (Resuming a run that is
            counted in steps from the end of an epoch, Lightning 2.6.6 tells samplers one epoch
            too many; its `current_epoch` is right.)
    """

    def __init__(
        self,
        dataset: BatchSource,
        sampler: KeyedSampler,
        num_workers: int = 0,
        current_epoch: Callable[[], int | None] | None = None,
    ) -> None:
        self.sampler = sampler  # under this name trainers look for `set_epoch`
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=sampler.rank_batch,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=self._generator,
        )
        self._current_epoch = current_epoch
        self._epoch = 0
        self._position = 0
        self._resume_epoch: int | None = None  # an epoch whose place waits for its iteration

    @property
    def batch_size(self) -> int:
        """Of this rank."""
        return self.sampler.rank_batch

    @property
    def epoch(self) -> int:
        """The epoch of the batch that was handed out last."""
        return self._epoch

    def __len__(self) -> int:
        """Batches of a whole epoch, also while one is resumed."""
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

    def state_dict(self) -> dict[str, int]:
        """The place within the epoch, the same on every rank and for any number of ranks."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "batch_size": self.sampler.batch_size,
            "num_samples": len(self._loader.dataset),  # type: ignore[arg-type]
            "seed": self.sampler.seed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batch that was handed out last; a finished epoch leads to the next one.

        Raises:
            ValueError: the place is inside an epoch of other batches.
        """
        own = self.state_dict()
        finished = state["position"] >= len(self)
        for name in ("batch_size", "num_samples", "seed"):
            if not finished and state["position"] and state[name] != own[name]:
                raise ValueError(
                    f"the checkpoint stopped inside an epoch with {name}={state[name]}, and cannot "
                    f"go on there with {name}={own[name]}; use {state[name]}, or a checkpoint from "
                    "the end of an epoch"
                )
        self._epoch = state["epoch"] + finished
        self._position = 0 if finished else state["position"]
        self._resume_epoch = self._epoch
        self.sampler.set_epoch(self._epoch)

    def close(self) -> None:
        """Stop the workers; the next iteration starts new ones."""
        self._loader._iterator = None


class EvalLoader:
    """All samples, in whole batches shared out over the ranks.

    Args:
        dataset: with `__getitems__` that gives a `Batch`.
        batch_size: of each batch, whatever the number of ranks.
        num_workers: 0 loads in the main process; workers live as long as an iteration.
        rank: this process's, from the process group by default.
        world: number of ranks, from the process group by default.
        order: (N,) int64 that batches are cut from, such as by length; None: 0..N-1.
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
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


class TokenLoader:
    """One batch: what a trainer needs to call its validation hooks, where callbacks do the work.

    Args:
        dataset: with `__getitems__` that gives a `Batch`; not empty.
    """

    def __init__(self, dataset: BatchSource) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield self._dataset.__getitems__([0])
