"""Memory: rows kept between steps, staged per rank and committed on all ranks.

Every rank has the same rows. The buffers have their full size from construction and are saved in
checkpoints; staged rows are not: a commit writes them, and loading a state discards them. A step
never reads the rows that it staged itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.distributed import Rows, gather_objects, gather_rows, rank


class Memory(nn.Module, ABC):
    """Abstract base of memories: rows are committed in (micro-batch, rank) order.

    A subclass has a `stage` method with its own arguments, which calls `_append`, and `_write`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._staged: list[tuple[Tensor, ...]] = []

    @abstractmethod
    def _write(self, *columns: Tensor) -> None:
        """Write the staged rows of all ranks: the columns of `_append`, (N, ...) each."""

    def _append(self, *columns: Tensor) -> None:
        """Stage one micro-batch, detached. Shapes: (n, ...) each, the same n."""
        self._staged.append(tuple(column.detach() for column in columns))

    @torch.no_grad()
    def commit(self) -> None:
        """Gather and write the staged rows of all ranks, in (micro-batch, rank) order.

        Every rank calls it once per optimizer step, also without staged rows.

        Raises:
            RuntimeError: if the ranks staged different numbers of micro-batches.
        """
        counts = gather_objects([len(columns[0]) for columns in self._staged])
        if len({len(of_rank) for of_rank in counts}) > 1:
            numbers = [len(of_rank) for of_rank in counts]
            raise RuntimeError(f"all ranks must stage equally many micro-batches, got {numbers}")
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
    """Reorder rows from (rank, micro-batch) to (micro-batch, rank), given counts[rank]."""
    if len(counts) == 1 or len(counts[0]) == 1:
        return x
    pieces = iter(x.split([n for of_rank in counts for n in of_rank]))
    of_ranks = [[next(pieces) for _ in of_rank] for of_rank in counts]
    return torch.cat([piece for of_micro in zip(*of_ranks, strict=True) for piece in of_micro])


def last_of_each(index: Tensor) -> Tensor:
    """For each row, the position of the last row with the same index.

    Rows of one index then have equal values, so that the order of writing does not matter.

    Args:
        index: (n,) int64.

    Returns:
        (n,) int64.
    """
    ordered, order = index.sort(stable=True)
    return order[torch.searchsorted(ordered, index, right=True) - 1]


def memories(module: nn.Module) -> list[Memory]:
    """All memories of a module."""
    return [part for part in module.modules() if isinstance(part, Memory)]


def commit_memories(module: nn.Module) -> None:
    """Commit all memories of a module; a plain loop calls it after `optimizer.step()`."""
    for memory in memories(module):
        memory.commit()


def memory_buffers(module: nn.Module) -> list[str]:
    """Full names of the buffers of all memories in `module`.

    DistributedDataParallel must ignore them: they are equal on all ranks already, and broadcasting
    them in every forward pass can cost more than the network.
    """
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, memory in module.named_modules()
        if isinstance(memory, Memory)
        for name, _ in memory.named_buffers(recurse=False)
    ]
