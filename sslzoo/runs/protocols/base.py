"""Protocol: abstract base of the papers' evaluation protocols, and what they are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import nn

from sslzoo.data.datamodule import default_workers
from sslzoo.eval.cache import cached_features
from sslzoo.eval.features import Features, extract
from sslzoo.eval.fingerprint import module_digest
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.runs.encoders import Model
from sslzoo.runs.evaluation import loaders_of
from sslzoo.runs.results import Metrics


@dataclass(frozen=True)
class Subject:
    """An encoder to evaluate, on its device and in eval mode.

    Args:
        encoder: (B, ...) -> (B, num_features).
        device: its device.
        data: the data module, set up, with the encoder's preprocessing; None for protocols that
            read a data set's official folder.
        preprocess: the encoder's preprocessing; None if unknown.
        cache: folder of the feature cache; None: no cache.
        key: hash of the encoder and the data, for the cache.
        workers: loader processes for images of a folder.
    """

    encoder: nn.Module
    device: torch.device
    data: LightningDataModule | None = None
    preprocess: Any = None
    cache: Path | None = None
    key: str = ""
    workers: int = 0

    def loaders(self) -> EvalLoaders:
        """The evaluation loaders of the data module."""
        assert self.data is not None
        return loaders_of(self.data)

    def features(self, part: str, forward: Callable[[Any], Any] | str = "forward") -> Features:
        """This rank's features of the "bank" or the "query" set; collective.

        Raises:
            ValueError: there is no such set.
        """
        loaders = self.loaders()
        loaders.check_module(self.encoder)
        loader = loaders.bank if part == "bank" else loaders.query
        if loader is None:
            raise ValueError("the data must have a query set (validation or test), got none")
        cache = self.cache if forward == "forward" else None
        found, _ = cached_features(
            cache,
            f"{self.key} protocol {part}",
            lambda: extract(self.encoder, loader, loaders, forward, self.device),
        )
        device = "cpu" if self.device.type == "mps" else self.device
        return Features(*(None if x is None else x.to(device) for x in found))  # type: ignore[arg-type]

    def num_classes(self) -> int:
        """C of the data module.

        Raises:
            ValueError: the data has no labels.
        """
        found = self.loaders().num_classes
        if found is None:
            raise ValueError("the data must have labels for this protocol, got none")
        return found


def subject_of(
    model: Model,
    encoder: nn.Module,
    data: LightningDataModule | None,
    folders: bool,
    device: torch.device,
    cache: Path | None = None,
    made: str | None = None,
) -> Subject:
    """The encoder of a model, on its device and in eval mode, as a `Subject`.

    Args:
        model: the model, whose preprocessing counts.
        encoder: its encoder, or the same network untrained.
        data: the data module, set up, with the preprocessing that the encoder expects.
        folders: whether a protocol reads a folder, and so needs the encoder's preprocessing.
        device: the device.
        cache: folder of the feature cache; None: no cache.
        made: fingerprint of the data, required by the cache.
    """
    encoder = encoder.eval().to(device)
    key = f"{module_digest(encoder)} {made} {device.type}" if cache is not None else ""
    preprocess = model.preprocess() if folders else None
    return Subject(encoder, device, data, preprocess, cache, key, default_workers())


class Protocol(ABC):
    """Settings of one evaluation protocol; subclasses are frozen dataclasses.

    Attributes:
        needs_data: whether it reads a data module; otherwise it reads a folder, its `root`.
    """

    needs_data = True

    @abstractmethod
    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        """Evaluate; collective, with the same figures on every rank and any number of them.

        Args:
            subject: the encoder and its data.
            seed: seed of draws, such as of initial weights and of labeled subsets.
        """

    def check(self) -> None:  # noqa: B027 (most protocols have nothing to check)
        """Check everything that can be known before an encoder runs.

        Raises:
            ValueError: a folder is missing or malformed.
        """


def mean_and_std(rows: Sequence[Metrics]) -> Metrics:
    """Mean of each metric over draws, and for several draws its deviation as `<name>_std`."""
    table = {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]
    }
    found = {name: values.mean().item() for name, values in table.items()}
    if len(rows) > 1:
        found |= {f"{name}_std": values.std().item() for name, values in table.items()}
    return found
