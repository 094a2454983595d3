"""Agreement: ranks of different configs, packages or data are refused before the first step.

DDP would average gradients of different losses, step by different learning rates, or wait for a
batch that another rank does not have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from sslzoo.data.datamodule import SampleDataModule, SampleSet
from sslzoo.distributed import gather_objects, is_distributed
from sslzoo.eval.fingerprint import labels_digest
from sslzoo.runs.provenance import provenance

_A_PATH = "a path"


class RanksAgree(Callback):
    """Compare, in `setup`, what the numbers of a run depend on.

    Paths may differ between nodes, such as those of local disks; the number of samples and the
    labels may not.

    Args:
        config: what the numbers depend on, plain values; see `determining`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse ranks that differ.

        Raises:
            ValueError: on every rank, with the first difference.
        """
        if not is_distributed():
            return
        about = {**dict(_flat(self.config)), **_packages(), **_data(trainer)}
        about.pop("ckpt_path", None)  # `Resumed` compares what it holds
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        if len(set(gather_objects(digest))) == 1:
            return
        told = gather_objects(about)
        for name in dict.fromkeys(name for each in told for name in each):
            values = [json.dumps(each.get(name, "nothing")) for each in told]
            first = {value: values.index(value) for value in dict.fromkeys(values)}
            if len(first) > 1:
                got = ", ".join(f"{value:.100} on rank {rank}" for value, rank in first.items())
                raise ValueError(f"{name} must be the same on every rank, got {got}")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config by their full names; a path that exists as one fixed text."""
    if isinstance(value, Mapping | list) and value:
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    else:
        is_path = isinstance(value, str) and "/" in value and Path(value).exists()
        yield name, _A_PATH if is_path else value


def _packages() -> dict[str, str]:
    about = provenance()
    return {
        f"the version of {name}": version
        for name, version in {"sslzoo": about["sslzoo"], **about["versions"]}.items()
    }


def _data(trainer: Trainer) -> dict[str, Any]:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, SampleDataModule):
        return {}
    about: dict[str, Any] = {"the number of training samples": data.num_samples}
    if isinstance(data.sets.train, SampleSet):
        about["the hash of the training labels"] = labels_digest(data.sets.train.labels)[:12]
    return about
