"""Memory: rows that outlive a step. A step stages them, and one commit writes those of all ranks.

Every rank holds the same rows. The buffers have their full size from construction and are in
the checkpoint; what is staged is not: it belongs to a step, and a commit, or loading a state,
drops it. A step never sees the rows that it staged itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.distributed import Rows, gather_objects, gather_rows, rank


class Memory(nn.Module, ABC):
    """What a queue and a bank share: stage, and commit in (micro-batch, rank) order.

    A subclass has a `stage` with its own arguments, which calls `_append`, and a `_write`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._staged: list[tuple[Tensor, ...]] = []

    @abstractmethod
    def _write(self, *columns: Tensor) -> None:
        """Write the staged rows of all ranks: the columns of `_append`, (N, ...) each."""

    @property
    def pending(self) -> int:
        """Rows that this rank has staged and not yet committed."""
        return sum(len(columns[0]) for columns in self._staged)

    def _append(self, *columns: Tensor) -> None:
        """Stage one micro-batch, detached. Shapes: (n, ...) each, the same n."""
        self._staged.append(tuple(column.detach() for column in columns))

    @torch.no_grad()
    def commit(self) -> None:
        """Gather what all ranks staged, write it in (micro-batch, rank) order, forget it.

        Every rank calls it, once an optimizer step. Nothing staged on any rank is no error.

        Raises:
            RuntimeError: where the ranks have staged different numbers of micro-batches.
        """
        counts = gather_objects([len(columns[0]) for columns in self._staged])
        if len({len(of_rank) for of_rank in counts}) > 1:
            numbers = [len(of_rank) for of_rank in counts]
            raise RuntimeError(f"ranks staged {numbers} micro-batches, wanted equally many")
        if not self._staged:
            return
        columns = [torch.cat(column) for column in zip(*self._staged, strict=True)]
        self._staged.clear()
        totals = tuple(sum(of_rank) for of_rank in counts)
        layout = Rows(totals, sum(totals[: rank()]), sum(totals))
        self._write(*[_by_micro_batch(gather_rows(x, layout), counts) for x in columns])

    def _load_from_state_dict(self, *args: Any) -> None:
        self._staged.clear()
        super()._load_from_state_dict(*args)


def _by_micro_batch(x: Tensor, counts: list[list[int]]) -> Tensor:
    """(rank, micro-batch) order -> (micro-batch, rank) order; counts by rank, micro-batch."""
    if len(counts) == 1 or len(counts[0]) == 1:
        return x
    pieces = iter(x.split([n for of_rank in counts for n in of_rank]))
    of_ranks = [[next(pieces) for _ in of_rank] for of_rank in counts]
    return torch.cat([piece for of_micro in zip(*of_ranks, strict=True) for piece in of_micro])


def last_of_each(index: Tensor) -> Tensor:
    """For each row the place of the last row with its index: of several the last one is written.

    Rows of one index then hold equal values, in whatever order a device writes them.

    Args:
        index: (n,) int64.

    Returns:
        (n,) int64.
    """
    ordered, order = index.sort(stable=True)
    return order[torch.searchsorted(ordered, index, right=True) - 1]


def memory_buffers(module: nn.Module) -> list[str]:
    """Full names of the memories' buffers in `module`.

    DistributedDataParallel is told to ignore them: they are equal on all ranks already, and
    broadcasting them at every forward costs more than many a network.
    """
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, memory in module.named_modules()
        if isinstance(memory, Memory)
        for name, _ in memory.named_buffers(recurse=False)
    ]
