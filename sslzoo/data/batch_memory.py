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
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

_ALIGN = 64  # bytes, as torch aligns its own memory
_SPARE = 2  # unused blocks that a worker keeps

# A tensor's type, shape and first byte in its block.
_Layout = tuple[torch.dtype, torch.Size, int]


class BatchMemory:
    """The collate function of loaders whose set makes whole batches, which it does not change.

    A block of shared memory holds the tensors of one batch, and belongs to the reader until the
    last of them is freed, whoever holds it. So a worker has as many blocks as batches of it are
    waiting or in use, and one that it writes. Tensors that are not contiguous, not on the CPU, in
    shared memory already, or with gradients cross as usual.
    """

    def __init__(self) -> None:
        self.__setstate__(uuid.uuid4().hex)

    def __getstate__(self) -> str:
        return self._token

    def __setstate__(self, token: str) -> None:
        self._token = token
        self._read = _blocks.setdefault(token, _Blocks())  # held, in the process that reads
        self._written: dict[int, Tensor] = {}  # in a worker: its blocks by number
        self._numbers = itertools.count()

    def __call__(self, batch: Any) -> Any:
        """Write a batch into a block, if this is a worker."""
        if get_worker_info() is None:
            return batch
        file, tensors = io.BytesIO(), list[Tensor]()
        _Pickler(file, tensors).dump(batch)
        if not tensors:
            return batch
        layout: list[_Layout] = []
        size = _ALIGN  # the first byte: whether the block is in use
        for x in tensors:
            layout.append((x.dtype, x.shape, size))
            size += -(-x.nbytes // _ALIGN) * _ALIGN
        number, is_new, dropped = self._block(size)
        block = self._written[number]
        for x, (dtype, shape, start) in zip(tensors, layout, strict=True):
            block[start : start + x.nbytes].view(dtype).view(shape).copy_(x)
        block[0] = 1
        key = (os.getpid(), number)
        return _Sent(self._token, key, block if is_new else None, dropped, layout, file.getvalue())

    def _block(self, size: int) -> tuple[int, bool, list[int]]:
        """A block of at least `size` bytes: its number, whether it is new, and blocks given up."""
        free = [number for number, block in self._written.items() if not block[0]]
        fitting = [number for number in free if len(self._written[number]) >= size]
        if fitting:
            dropped = [number for number in free if number != fitting[-1]][:-_SPARE]
            found = fitting[-1]
        else:
            dropped, found = free, next(self._numbers)
            room = size + size // 4 if free else size  # sizes vary: room for larger ones
            self._written[found] = _shared(room)
        for number in dropped:
            del self._written[number]
        return found, not fitting, dropped


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


class _Blocks(dict[tuple[int, int], NDArray[np.uint8]]):
    """The blocks that a process reads, by worker and number."""


_blocks: weakref.WeakValueDictionary[str, _Blocks] = weakref.WeakValueDictionary()


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
    block: Tensor | None,
    dropped: list[int],
    layout: list[_Layout],
    payload: bytes,
) -> Any:
    read = _blocks[token]
    for number in dropped:
        read.pop((key[0], number), None)
    if block is not None:
        read[key] = block.numpy()
    array = read[key]
    lease = memoryview(array)  # type: ignore[arg-type]
    tensors = [
        torch.frombuffer(lease, dtype=dtype, count=shape.numel(), offset=start).view(shape)
        for dtype, shape, start in layout
    ]
    # The lease lives as long as the storage of any of the tensors.
    weakref.finalize(lease, _give_back, array, os.getpid()).atexit = False
    return _Unpickler(io.BytesIO(payload), tensors).load()


def _give_back(array: NDArray[np.uint8], reader: int) -> None:
    if os.getpid() == reader:  # not a child that was forked from it
        array[0] = 0
