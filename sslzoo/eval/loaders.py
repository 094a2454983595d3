"""EvalLoaders: the loaders and the transform that a data module provides for evaluation.

They are a bank to search (or to train a probe on), a query set to score, and the transform that
turns a raw batch into the single view that an encoder sees, without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from sslzoo.batch import Batch


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
    """

    bank: Iterable[Batch]
    query: Iterable[Batch] | None
    transform: Callable[[Batch], Batch]
    num_classes: int | None
    sharded: bool
    ordered: bool = True
