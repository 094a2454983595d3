"""Feature extraction over a data set: eval mode, no augmentation, no gradient, each sample once.

The module's train flags, its buffers and every random generator are left unchanged.
Shapes: n samples of this rank, D width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from sslzoo.batch import Batch, blamed_on
from sslzoo.distributed import gather_objects, gather_rows, rank, row_layout, world_size
from sslzoo.eval.knn.search import first_occurrence
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.random import stratified_split
from sslzoo.sharding import whole


class Features(NamedTuple):
    """An encoder's features of this rank's samples, with their labels and indices.

    Args:
        features: (n, D) float32, on the encoder's device.
        label: (n,) as the loader yields it, or None; masks (n, H, W) are left out.
        index: (n,) int64; no index appears on two ranks or twice on one.
    """

    features: Tensor
    label: Tensor | None
    index: Tensor  # type: ignore[assignment]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Context manager for eval mode that restores each submodule's train flag afterwards.

    A sharded module is whole inside, so all ranks must enter.
    """
    flags = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with whole(module):
            yield
    finally:
        for child, training in flags:
            child.training = training


def _as_batch(raw: Any, start: int) -> Batch:
    """A loader's item as a `Batch`; pairs (images, labels) are indexed by loader position."""
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, (tuple, list)) and len(raw) == 2 and isinstance(raw[0], Tensor):
        return Batch([raw[0]], torch.arange(start, start + len(raw[0])), raw[1])
    raise ValueError(
        "evaluation loaders must yield a Batch or a pair (images, labels), got "
        f"{type(raw).__name__}"
    )


def own_batches(
    loader: Iterable[Any], loaders: EvalLoaders, limit: int | None = None
) -> Iterator[Batch]:
    """This rank's batches: all of a sharded loader, otherwise every W-th of the common sequence."""
    start = 0
    for number, raw in enumerate(loader):
        batch = _as_batch(raw, start)
        start += len(batch.index)
        if limit is not None and int(batch.index.min()) >= limit:
            if loaders.ordered:
                return
            continue
        if loaders.sharded or number % world_size() == rank():
            yield batch


@torch.no_grad()
def extract(
    module: nn.Module,
    loader: Iterable[Any],
    loaders: EvalLoaders,
    features: str | Callable[[Any], Tensor] = "forward",
    device: torch.device | str | None = None,
    limit: int | None = None,
) -> Features:
    """Extract the features of one loader; collective, so every rank must call it.

    Args:
        module: put into eval mode for the duration of the call.
        loader: `loaders.bank` or `loaders.query`; yields `Batch`es of one raw view, or pairs
            (images, labels). If it is not sharded, rank r of W takes the batches r, r + W, ...
        loaders: its transform is applied to each batch after the move to the device, and the
            first view is encoded; it also says whether the loader is sharded.
        features: name of the module's method from a view to features (B, D), or a function.
        device: device to compute on; None: that of the module's first parameter.
        limit: use only samples whose index is below it.

    Returns:
        This rank's samples without duplicate indices (the first one on the lowest rank is kept).

    Raises:
        ValueError: no such method, it fails on a view, the features are not (B, D), no rank has a
            sample, or the samples are none that the module can embed.
    """
    forward = getattr(module, features, None) if isinstance(features, str) else features
    if forward is None:
        raise ValueError(
            f"features must be a method of {type(module).__name__}, which has no {features!r}"
        )
    if device is None:
        parameter = next(module.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
    loaders.check_module(module)
    parts = []
    with isolate_rng(), eval_mode(module):
        for batch in own_batches(loader, loaders, limit):
            batch = loaders.transform(move_data_to_device(batch, device))
            with blamed_on(batch.views[:1], f"{type(module).__name__} cannot be evaluated"):
                output = forward(batch.views[0])
            if not isinstance(output, Tensor) or output.ndim != 2:
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"the features to evaluate must be (B, D), got {got}")
            masks = batch.label is not None and batch.label.ndim > 2  # of segmentation, unused here
            label = None if masks else batch.label
            parts.append(Features(output.float(), label, batch.index))
    own = collect(parts, device)
    if limit is None:
        return own
    keep = (own.index < limit).nonzero().squeeze(1)
    label = None if own.label is None else own.label[keep]
    return Features(own.features[keep], label, own.index[keep])


def collect(parts: list[Features], device: torch.device | str) -> Features:
    """Concatenate this rank's batches and drop duplicate indices over all ranks; collective.

    Args:
        parts: one per batch; a rank without any gets an empty result of the other ranks' shape.
        device: device of the result.
    """
    like = None
    if parts:
        label = parts[0].label
        of_label = None if label is None else (label.shape[1:], label.dtype)
        like = parts[0].features.shape[1:], of_label
    known = [other for other in gather_objects(like) if other is not None]
    if not known:
        raise ValueError("the evaluation loader must yield at least one batch, got none")
    if parts:
        features = torch.cat([part.features for part in parts]).to(device)
        index = torch.cat([part.index for part in parts]).to(device, torch.int64)
        labels = [part.label for part in parts if part.label is not None]
        label = torch.cat(labels).to(device) if labels else None
    else:
        width, of_label = known[0]
        features = torch.empty(0, *width, device=device)
        index = torch.empty(0, dtype=torch.int64, device=device)
        label = None
        if of_label is not None:
            label = torch.empty(0, *of_label[0], dtype=of_label[1], device=device)
    keep = first_occurrence(index)
    return Features(features[keep], None if label is None else label[keep], index[keep])


def gather_features(own: Features) -> Features:
    """Gather all ranks' samples on every rank, sorted by index. (n, D) -> (N, D)."""
    rows = row_layout(len(own.index))
    index, order = gather_rows(own.index, rows).sort(stable=True)
    label = None if own.label is None else gather_rows(own.label, rows)[order]
    return Features(gather_rows(own.features, rows)[order], label, index)


def take_fraction(own: Features, fraction: float, seed: int) -> Features:
    """Select this rank's part of a class-balanced subset of all ranks' samples; collective.

    The subset is a function of the samples' index and label and of the seed, whatever the number
    of ranks; seed 0 is the subset that a data module's `train_fraction` trains on.

    Args:
        own: this rank's features, with labels (n,).
        fraction: fraction of each class, inside (0, 1); see `stratified_split`.
        seed: seed of the draw.
    """
    assert own.label is not None
    rows = row_layout(len(own.index))
    index, order = gather_rows(own.index, rows).sort(stable=True)
    label = gather_rows(own.label, rows)[order].cpu()
    chosen = stratified_split(label, len(label), fraction, seed)[1]
    keep = torch.isin(own.index, index[chosen.to(index.device)])
    return Features(own.features[keep], own.label[keep], own.index[keep])
