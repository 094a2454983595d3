"""Rehearsal: find what an evaluation or a callback would fail with before the first step.

Two samples are read and embedded, without a loader's workers and without communication between
ranks; labels that a set holds in memory are checked all at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sslzoo.batch import Batch, as_batch, blamed_on
from sslzoo.checks import check_classes
from sslzoo.eval.features import eval_mode
from sslzoo.eval.loaders import EvalLoaders, first_readable

COUNT = 2  # samples of a rehearsal
NO_LABELS = "got none; use OnlineSpectrum, which needs no labels"


def require(pl_module: LightningModule, who: str, *names: str) -> None:
    """Refuse a module without the attributes that a callback reads.

    Raises:
        ValueError: names the callback, what it needs and the module.
    """
    missing = [name for name in names if not hasattr(pl_module, name)]
    if missing:
        raise ValueError(
            f"the module must have {', '.join(names)} for {who}, got {type(pl_module).__name__} "
            f"without {', '.join(missing)}"
        )


def dataset_of(loader: Any) -> Any:
    """The map-style set behind a loader, or None."""
    inner = getattr(loader, "_loader", loader)  # an EvalLoader's
    whole = not isinstance(inner, DataLoader) or inner.batch_sampler is None
    data = None if whole else inner.dataset
    return None if isinstance(data, IterableDataset) else data


def first_batch(loader: Iterable[Any]) -> Batch:
    """The first samples of an evaluation loader, read by this process; the next ones if unreadable.

    Raises:
        ValueError: the loader is empty, or no sample is readable.
    """
    data = dataset_of(loader)
    inner: Any = getattr(loader, "_loader", loader)
    with isolate_rng():  # a DataLoader draws a seed when its iteration begins
        if data is None:
            raw = next(iter(loader), None)
        else:
            many = hasattr(data, "__getitems__")

            def read(rows: list[int]) -> Any:
                return inner.collate_fn(
                    data.__getitems__(rows) if many else [data[row] for row in rows]
                )

            raw = first_readable(len(data), COUNT, read) if len(data) else None
    if raw is None:
        raise ValueError("the evaluation loader must yield at least one batch, got none")
    batch = as_batch(raw)
    views = [
        view[:COUNT] if isinstance(view, Tensor) else type(view)(*(x[:COUNT] for x in view))
        for view in batch.views
    ]
    label = None if batch.label is None else batch.label[:COUNT]
    return batch._replace(views=views, index=batch.index[:COUNT], label=label)


def embed_first(
    trainer: Trainer,
    pl_module: LightningModule,
    loaders: EvalLoaders,
    batch: Batch,
    features: str,
) -> Tensor | None:
    """Features (B, D) of a batch of an evaluation loader, or None if it is empty.

    Raises:
        ValueError: the module has no such method, or it gives something else or an error.
    """
    forward = getattr(pl_module, features, None)
    if not callable(forward):
        raise ValueError(
            f"features must be a method of {type(pl_module).__name__}, which has no {features!r}"
        )
    loaders.check_module(pl_module)
    if not all(map(len, batch.views)):
        return None  # unreadable samples that are skipped
    precision = trainer.precision_plugin
    with torch.no_grad(), isolate_rng(), eval_mode(pl_module), precision.forward_context():
        shown = loaders.transform(move_data_to_device(batch, pl_module.device))
        view = precision.convert_input(shown.views[0])
        with blamed_on([view], f"{type(pl_module).__name__} cannot be evaluated"):
            output = forward(view)
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the features to evaluate must be (B, D), got {got} of {features!r}")
    return output


def known_labels(loader: Any, first: Tensor) -> Tensor | None:
    """All labels of a loader's set, if it holds them in memory.

    What the set calls its labels may be the names of its classes, or be changed on reading: it
    counts only if it has a number per sample and begins with the labels that were read.

    Args:
        loader: an evaluation loader.
        first: its first labels, (n,).
    """
    data = dataset_of(loader)
    tensors: Any = getattr(data, "tensors", (None,))
    for found in (getattr(data, "labels", None), getattr(data, "targets", None), tensors[-1]):
        try:
            labels = torch.as_tensor(found).reshape(len(data))
        except (TypeError, ValueError, RuntimeError):
            continue
        if torch.equal(labels[: len(first)].long().cpu(), first.cpu()):
            return labels
    return None


def check_labels(loader: Any, batch: Batch, num_classes: int, who: str) -> None:
    """Refuse labels that are not one class per sample in 0..num_classes-1.

    Raises:
        ValueError: names who needs them, the range and what is there.
    """
    if batch.label is None:
        raise ValueError(f"the data must have labels for {who}, {NO_LABELS}")
    first = check_classes(who, batch.label)
    for labels in (known_labels(loader, first), first):
        if labels is None or labels.numel() == 0:
            continue
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"labels must be in 0..{num_classes - 1}, since num_classes is {num_classes}, for "
                f"{who}, got {low}..{high}"
            )


def num_samples(loader: Any) -> int | None:
    """Number of samples of all ranks, if it is known without reading them."""
    data = dataset_of(loader)
    return None if data is None else len(data)
