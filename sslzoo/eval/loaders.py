"""EvalLoaders: the loaders and the transform that a data module provides for evaluation.

They are a bank to search (or to train a probe on), a query set to score, and the transform that
turns a raw batch into the single view that an encoder sees, without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from sslzoo.batch import Batch

_Read = TypeVar("_Read")


class EvalLoaders(NamedTuple):
    """Loaders of raw `Batch`es, and the transform and facts needed to read them.

    Args:
        bank: the training set, each sample once.
        query: the validation (or test) set; None if there is none.
        transform: applied to each batch after it is moved to the device.
        num_classes: None if the data has no labels: only label-free metrics can be computed.
        sharded: whether the loaders yield this rank's batches only. Then rank r of W has the
            whole batches r, r + W, ... of one fixed sequence, so that the contents of a batch never
            depend on W; some ranks may have one batch fewer than others, or none.
        ordered: whether samples come in the order of their index; length-bucketed ones do not.
        check: called with the module before its features are extracted; raises a ValueError for
            samples that it cannot embed, such as recordings shorter than a frame.
    """

    bank: Iterable[Batch]
    query: Iterable[Batch] | None
    transform: Callable[[Batch], Batch]
    num_classes: int | None
    sharded: bool
    ordered: bool = True
    check: Callable[[Any], None] | None = None

    def check_module(self, module: Any) -> None:
        """Refuse samples that a module cannot embed, before any is read.

        Raises:
            ValueError: see `check`.
        """
        if self.check is not None:
            self.check(module)


class BrokenBatchError(ValueError):
    """All samples of a batch are unreadable, and such samples are skipped."""


def first_readable(count: int, size: int, read: Callable[[list[int]], _Read]) -> _Read:
    """What `read` gives of the first `size` consecutive samples of which one is readable.

    Args:
        count: number of samples, at least 1.
        size: number of samples to read together.
        read: sample numbers -> what is made of them.

    Raises:
        BrokenBatchError: none is readable.
    """
    for start in range(0, count, size):
        try:
            return read(list(range(start, min(start + size, count))))
        except BrokenBatchError:
            if start + size >= count:
                raise
    raise ValueError(f"count must be at least 1, got {count}")
