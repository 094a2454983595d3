"""BatchMemory: batches cross from loader workers in shared memory that is used again.

torch's loaders put each tensor of each batch in new shared memory, which the kernel has to map and
clear page by page, in the worker and again in the process that reads. Here a worker keeps the
memory of its batches, and writes the next one where an earlier one is no longer used.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import uuid
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

_ALIGN = 64  # bytes, as torch aligns its own memory
_SPARE = 2  # unused blocks that a worker keeps
_FREE, _IN_USE, _LOST = 0, 1, 2  # the first byte of a block

# A tensor's type, shape and first byte in its block.
_Layout = tuple[torch.dtype, torch.Size, int]


def collate_for(num_workers: int) -> Callable[[Any], Any]:
    """The collate function of a loader whose set returns whole batches."""
    return BatchMemory() if num_workers else _as_it_is


def _as_it_is(batch: Any) -> Any:
    return batch


class BatchMemory:
    """The collate function in workers, for sets that return whole batches, which stay unchanged.

    A block of shared memory holds the tensors of one batch, and belongs to the reader until the
    last of them is freed, whoever holds it. So a worker has a block for each of its batches that
    waits or is in use, and at most two more. Tensors that are not contiguous, not on the CPU, in
    shared memory already, or with gradients cross as usual. Those that share memory no longer do.

    An object is for workers that are started together. In the process that reads, it does nothing.
    """

    def __init__(self) -> None:
        self._start(uuid.uuid4().hex)

    def _start(self, token: str) -> None:
        self._token = token
        self._read = _read.setdefault(token, _Blocks())  # kept, in the process that reads
        self._written: dict[int, Tensor] = {}  # in a worker: its blocks by number
        self._numbers = itertools.count()

    def __getstate__(self) -> str:
        return self._token

    def __setstate__(self, token: str) -> None:
        self._start(token)

    def __call__(self, batch: Any) -> Any:
        if get_worker_info() is None:
            return batch
        file, tensors = io.BytesIO(), list[Tensor]()
        _Pickler(file, tensors).dump(batch)
        if not tensors:
            return batch
        layout: list[_Layout] = []
        size = _ALIGN
        for x in tensors:
            layout.append((x.dtype, x.shape, size))
            size += -(-x.nbytes // _ALIGN) * _ALIGN
        number, dropped = self._choose(size)
        known = self._written.get(number)
        # Where sizes vary, larger ones than this one will come.
        block = _shared(size + size // 4 if dropped else size) if known is None else known
        for x, (dtype, shape, start) in zip(tensors, layout, strict=True):
            block[start : start + x.nbytes].view(dtype).view(shape).copy_(x)
        block[0] = _IN_USE
        self._written[number] = block
        new = block if known is None else None
        return _Sent(self._token, (os.getpid(), number), new, dropped, layout, file.getvalue())

    def _choose(self, size: int) -> tuple[int, list[int]]:
        """The number of the block to write, which may be a new one, and those that are given up."""
        states = {number: int(block[0]) for number, block in self._written.items()}
        free = [number for number, state in states.items() if state == _FREE]
        fitting = [number for number in free if len(self._written[number]) >= size]
        chosen = fitting[-1] if fitting else next(self._numbers)
        dropped = [number for number in free if number != chosen]
        if fitting:
            dropped = dropped[:-_SPARE]
        dropped += [number for number, state in states.items() if state == _LOST]
        for number in dropped:
            del self._written[number]
        return chosen, dropped


class _Blocks(dict[tuple[int, int], NDArray[np.uint8]]):
    """The blocks that a process reads, by worker and number."""


_read: weakref.WeakValueDictionary[str, _Blocks] = weakref.WeakValueDictionary()


def _shared(size: int) -> Tensor:
    """A new block; without room for it, an error, where torch's loader would wait for ever."""
    try:
        return torch.empty(size, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise RuntimeError(
            "the shared memory of the system (/dev/shm) must have room for three batches of each "
            f"loader worker, got none for one of {size / 2**20:.1f} MiB ({error}); enlarge it "
            "(docker run --shm-size), or lower num_workers or batch_size"
        ) from error


class _Pickler(ForkingPickler):
    """Pickles a batch without its tensors, and lists them."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors
        self._seen: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not Tensor or not _is_plain(obj):
            return None
        number = self._seen.setdefault(id(obj), len(self._tensors))
        if number == len(self._tensors):
            self._tensors.append(obj)
        return number


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor is its bytes, which no other process has."""
    if x.device.type != "cpu" or x.layout is not torch.strided or x.is_quantized:
        return False
    return x.numel() > 0 and x.is_contiguous() and not x.requires_grad and not x.is_shared()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self._tensors[pid]


class _Sent:
    """A batch on its way, which arrives as the batch."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, self._parts


def _receive(
    token: str,
    key: tuple[int, int],
    new: Tensor | None,
    dropped: list[int],
    layout: list[_Layout],
    payload: bytes,
) -> Any:
    blocks = _read[token]
    for number in dropped:
        blocks.pop((key[0], number), None)
    if new is not None:
        blocks[key] = new.numpy()
    array = blocks[key]
    # It lives as long as the storage of any of the tensors.
    lease = memoryview(array)  # type: ignore[arg-type]
    weakref.finalize(lease, _give_back, array, _reader()).atexit = False
    tensors = [
        torch.frombuffer(lease, dtype=dtype, count=shape.numel(), offset=start).view(shape)
        for dtype, shape, start in layout
    ]
    return _Unpickler(io.BytesIO(payload), tensors).load()


_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_count_fork)


def _reader() -> tuple[int, int]:
    """This process, and how often it was forked."""
    return os.getpid(), _forks


def _give_back(array: NDArray[np.uint8], reader: tuple[int, int]) -> None:
    """Free a block, unless a child that was forked meanwhile may still read it."""
    now = _reader()
    if now[0] == reader[0]:
        array[0] = _FREE if now == reader else _LOST
