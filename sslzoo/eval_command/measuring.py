"""Measuring: an encoder's features of a data module, once, and what the suite makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import nn

from sslzoo.data.alignment import view_alignment
from sslzoo.data.fingerprint import fingerprint
from sslzoo.data.module import ImageDataModule
from sslzoo.eval.cache import cached_features, module_digest
from sslzoo.eval.features import Features, extract
from sslzoo.eval.suite import OF_BANK_LABELS, Suite
from sslzoo.eval_command.results import Metrics
from sslzoo.transforms.eval_view import EvalView


def measure(
    encoder: nn.Module,
    view: EvalView | None,
    data: ImageDataModule,
    suite: Suite,
    fabric: Fabric,
    cache: Path | None,
    seeds: Sequence[int] = (0,),
) -> list[Metrics]:
    """The metrics of one encoder; collective.

    The first seed's are all, the others' those that few labels change: features are extracted
    once.

    Args:
        encoder: put on the fabric's device, in eval mode.
        view: whose normalisation and colours the encoder knows; None: those of the data.
        data: set up; its `eval_view` gives the size.
        suite: what is measured.
        fabric: launched.
        cache: folder of features; None: none is kept.
        seeds: of the labels that the suite's `train_fraction` leaves.

    Returns:
        One for each seed.
    """
    own = data.eval_view
    if view is not None:
        data.eval_view = EvalView(
            own.size,
            own.resize,
            view.mean,
            view.std,
            view.interpolation,
            own.fraction,
            view.space,
        )
    try:
        encoder = encoder.eval().to(fabric.device)
        loaders = data.eval_dataloaders()
        key = f"{module_digest(encoder)} {fingerprint(data)} {fabric.device.type}"

        def features(part: str, loader: Any) -> Features:
            found, _ = cached_features(
                cache, f"{key} {part}", lambda: extract(encoder, loader, loaders)
            )
            # Where the ranks' backend is; Apple's GPUs have no float64.
            device = "cpu" if fabric.device.type == "mps" else fabric.device
            return Features(*(None if x is None else x.to(device) for x in found))  # type: ignore[arg-type]

        bank = features("bank", loaders.bank)
        query = None if loaders.query is None else features("query", loaders.query)
        of_labels = [name for name in suite.protocols if name in OF_BANK_LABELS]
        rows = [suite(bank, query, loaders.num_classes, seeds[0])]
        if "label_free" in suite.protocols:
            aligned = view_alignment(encoder, data, fabric.device)
            rows[0] |= {} if aligned is None else {"alignment": aligned}
        for seed in seeds[1:]:
            few = dataclasses.replace(suite, protocols=of_labels)
            rows.append(few(bank, query, loaders.num_classes, seed))
        return rows
    finally:
        data.eval_view = own
