"""Evaluation: extract an encoder's features on a data module and compute the suite's metrics."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule
from lightning.fabric import Fabric
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.callbacks.rehearsal import first_batch
from sslzoo.data.alignment import view_alignment
from sslzoo.data.datamodule import SampleDataModule
from sslzoo.data.image.davis import Davis
from sslzoo.distributed import rank, world_size
from sslzoo.eval.cache import cached_features
from sslzoo.eval.dense.davis import davis_metrics, score_video
from sslzoo.eval.dense.maps import map_of
from sslzoo.eval.dense.propagation import PropagationOptions, segment_video
from sslzoo.eval.dense.protocols import DENSE, dense_metrics
from sslzoo.eval.features import Features, extract
from sslzoo.eval.fingerprint import module_digest
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.suite import OF_BANK_LABELS, OF_LABELS, OF_MAPS, Suite
from sslzoo.runs.encoders import Model
from sslzoo.runs.results import Metrics


def note(text: str) -> None:
    """Print a note on the results to stderr, on rank 0."""
    if rank() == 0:
        print(f"sslzoo eval: {text}", file=sys.stderr)


def loaders_of(data: LightningDataModule) -> EvalLoaders:
    """Get the evaluation loaders of a data module.

    Raises:
        ValueError: the data module does not follow the interface.
    """
    make: Callable[[], Any] | None = getattr(data, "eval_dataloaders", None)
    loaders = None if make is None else make()
    if not isinstance(loaders, EvalLoaders):
        got = "no such method" if make is None else f"one that returns {type(loaders).__name__}"
        raise ValueError(
            f"{type(data).__name__} must have eval_dataloaders() that returns "
            f"sslzoo.eval.loaders.EvalLoaders, got {got}"
        )
    return loaders


def fingerprint_of(data: LightningDataModule) -> str | None:
    """Fingerprint of the data, for the cache key; None if the data module has none."""
    give: Callable[[], str | None] | None = getattr(data, "fingerprint", None)
    return None if give is None else give()


def as_known_to(model: Model, data: LightningDataModule, on_own: bool) -> LightningDataModule:
    """Adapt the data so that its samples are preprocessed as the encoder expects.

    Args:
        model: the model, whose preprocessing takes precedence.
        data: the data module, set up.
        on_own: whether it is the data that the run was trained on.

    Raises:
        ValueError: the encoder expects samples that the data cannot provide.
    """
    kind = type(data).__name__
    try:
        given = model.preprocess()
    except ValueError as error:
        if not on_own:
            raise
        note(f"{error}; using the preprocessing of {kind} instead")
        given = None
    else:
        if given is None and type(model.trained_on) is not type(data):
            note(f"{model.name} records no preprocessing; using that of {kind}")
    if given is not None:
        take: Callable[[Any], LightningDataModule] | None = getattr(data, "with_input", None)
        known = data if take is None else take(given)
        if known is data:
            note(
                f"using the preprocessing of {kind}, which cannot use that of {model.name} "
                f"({type(given).__name__})"
            )
        data = known
    give = getattr(data, "encoder_input", None)
    model.check_vocabulary(None if give is None else give())
    leave_out: Callable[[nn.Module], LightningDataModule] | None
    leave_out = getattr(data, "without_short", None)
    return data if leave_out is None else leave_out(model.encoder)


class Found(NamedTuple):
    """Features of this rank, as the suite needs them.

    Args:
        bank: features of the bank, which is searched or trained on.
        query: features of the query set, which is scored; only if the suite reads it.
        num_classes: None without labels.
        pairs: features of scored pairs, by name.
        maps: the protocols of feature maps that the data allows.
    """

    bank: Features
    query: Features | None
    num_classes: int | None
    pairs: dict[str, Features]
    maps: tuple[str, ...] = ()


def find(
    encoder: nn.Module,
    data: LightningDataModule,
    suite: Suite,
    fabric: Fabric,
    cache: Path | None = None,
    made: str | None = None,
) -> Found:
    """Extract, or load from the cache, the features that a suite reads; collective.

    Args:
        encoder: put on the fabric's device, in eval mode.
        data: the data module, set up, with the preprocessing that the encoder expects.
        suite: the metrics to compute.
        fabric: launched fabric.
        cache: folder of the feature cache; None: no cache.
        made: fingerprint of the data, required by the cache.
    """
    encoder = encoder.eval().to(fabric.device)
    key = f"{module_digest(encoder)} {made} {fabric.device.type}" if cache is not None else ""

    def features(part: str, of: EvalLoaders, loader: Any, limit: int | None = None) -> Features:
        read = of._replace(transform=lambda batch: _labeled_once(of.transform(batch)))
        found, _ = cached_features(
            cache, f"{key} {part} {limit}", lambda: extract(encoder, loader, read, limit=limit)
        )
        # The device of the ranks' backend; Apple's GPUs have no float64.
        device = "cpu" if fabric.device.type == "mps" else fabric.device
        return Features(*(None if x is None else x.to(device) for x in found))  # type: ignore[arg-type]

    loaders, maps = loaders_of(data), protocols_of_maps(data)
    loaders.check_module(encoder)
    if suite.protocols is not None and not set(suite.protocols) - set(OF_MAPS):
        none = Features(torch.empty(0, 0), None, torch.empty(0, dtype=torch.int64))
        return Found(none, None, loaders.num_classes, {}, maps)
    labeled = loaders.num_classes is not None and loaders.query is not None and not maps
    if suite.protocols is not None:
        labeled = bool(set(suite.protocols) & set(OF_LABELS))
    limit = None if labeled else suite.rank_samples
    bank = features("bank", loaders, loaders.bank, limit)
    query = None
    if labeled and loaders.query is not None:
        query = features("query", loaders, loaders.query)
    give: Callable[[], dict[str, EvalLoaders]] | None = getattr(
        data, "similarity_dataloaders", None
    )
    pairs = {}
    if give is not None and (suite.protocols is None or "similarity" in suite.protocols):
        pairs = {name: features(f"pairs {name}", of, of.bank) for name, of in give().items()}
    return Found(bank, query, loaders.num_classes, pairs, maps)


def protocols_of_maps(data: LightningDataModule) -> tuple[str, ...]:
    """The protocols of feature maps that a data module, set up, allows."""
    if isinstance(data, Davis):
        return ("davis",)
    loaders = loaders_of(data)
    if loaders.query is None or loaders.num_classes is None:
        return ()
    batch = first_batch(loaders.query)
    images = isinstance(batch.views[0], Tensor) and batch.views[0].ndim == 4
    return DENSE if images and batch.label is not None and batch.label.ndim == 3 else ()


def _labeled_once(batch: Batch) -> Batch:
    """Drop labels that no protocol reads: one per frame, or several per sample."""
    label = batch.label
    plain = label is None or label.ndim == 1 or label.shape[1:] == (1,)
    return batch if plain else batch._replace(label=None)


def measure(
    encoder: nn.Module,
    data: LightningDataModule,
    found: Found,
    suite: Suite,
    fabric: Fabric,
    seeds: Sequence[int] = (0,),
) -> list[Metrics]:
    """Compute the metrics of one encoder; collective.

    The first seed's are complete, the others' only those that depend on the labels' subset.

    Args:
        encoder: the encoder of the features.
        data: the data module of the features.
        found: the features.
        suite: the metrics to compute, with explicit protocols.
        fabric: launched fabric.
        seeds: seeds that draw the labels kept by the suite's `train_fraction`.

    Returns:
        One dictionary of metrics per seed.
    """
    assert suite.protocols is not None
    of_labels = [name for name in suite.protocols if name in OF_BANK_LABELS]
    rows = [suite(found.bank, found.query, found.num_classes, seeds[0], found.pairs)]
    if "label_free" in suite.protocols and isinstance(data, SampleDataModule):
        aligned = view_alignment(encoder, data, fabric.device)
        rows[0] |= {} if aligned is None else {"alignment": aligned}
    dense = [name for name in suite.protocols if name in DENSE]
    if dense:
        rows[0] |= dense_metrics(
            *(encoder, loaders_of(data), dense, suite.dense, fabric.device),
            class_names=getattr(data, "classes", ()),
        )
    if "davis" in suite.protocols:
        if not isinstance(data, Davis):
            raise ValueError(
                "the data must be sslzoo.data.Davis for the protocol 'davis', got "
                f"{type(data).__name__}"
            )
        blocks = suite.dense.blocks
        rows[0] |= follow_videos(encoder, data, suite.davis, fabric.device, blocks)
    for seed in seeds[1:]:
        few = dataclasses.replace(suite, protocols=of_labels)
        rows.append(few(found.bank, found.query, found.num_classes, seed))
    return rows


def follow_videos(
    encoder: nn.Module,
    data: Davis,
    options: PropagationOptions,
    device: torch.device,
    blocks: int = 1,
) -> Metrics:
    """J & F of label propagation through videos; collective.

    Args:
        encoder: the encoder, in eval mode.
        data: the videos, set up, with the preprocessing that the encoder expects.
        options: how labels are propagated.
        device: where the encoder is.
        blocks: number of a ViT's last blocks whose tokens are concatenated.
    """
    mapper, found = map_of(encoder, blocks), []
    for video in data.videos[rank() :: world_size()]:
        masks = data.masks(video)
        frames = list(data.frames(video, options.side, device))
        found += score_video(masks, segment_video(frames, masks[0], mapper, options))
    return davis_metrics(found)
