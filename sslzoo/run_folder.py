"""Run directory: the files that `sslzoo fit` writes to runs/<config>/version_N."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Trainer

from sslzoo.trust import is_folder_of_shards, read_config

CHECKPOINTS, LAST, RECORD = "checkpoints", "last.ckpt", "run.json"
_VERSION = "version_"


@dataclass(frozen=True)
class RunFolder:
    """The files of a run directory.

    Args:
        path: the directory.
    """

    path: Path

    @property
    def number(self) -> int:
        """N of version_N."""
        return int(self.path.name.removeprefix(_VERSION))

    @property
    def config_file(self) -> Path:
        """Path of the run's config."""
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        """Path of the last checkpoint, a file or the folder of a distributed one."""
        return self.path / CHECKPOINTS / LAST

    @property
    def checkpoint_file(self) -> Path:
        """Path of the last checkpoint, to read its weights.

        Raises:
            ValueError: it is the folder of a distributed checkpoint.
        """
        if is_folder_of_shards(self.checkpoint):
            raise ValueError(
                f"{self.checkpoint} must be a file, got the folder of a distributed checkpoint; "
                f"run `sslzoo consolidate {self.path} --to FILE.ckpt` and use that file"
            )
        return self.checkpoint

    @property
    def metrics_file(self) -> Path:
        """Path of the CSV file of the logged metrics."""
        return self.path / "metrics.csv"

    def config(self) -> dict[str, Any]:
        """Read the run's config.

        Raises:
            ValueError: the directory has no config, or see `read_config`.
        """
        if not self.config_file.is_file():
            raise ValueError(f"a run directory must have config.yaml, got {str(self.path)!r}")
        return read_config(self.config_file)

    def record(self) -> dict[str, Any]:
        """Read the command, versions, commit and date of the run; empty for older runs."""
        path = self.path / RECORD
        return json.loads(path.read_text()) if path.is_file() else {}

    def last_validation(self) -> dict[str, float]:
        """Read the last value of every validation metric."""
        rows = read_metrics(self.metrics_file)
        return {name: value for _, name, value in rows if name.startswith("val/")}


def read_metrics(path: Path) -> Iterator[tuple[str | None, str, float]]:
    """Read the logged values of a CSVLogger's file as (step, name, value); none without a file.

    Raises:
        ValueError: a value is not a number, or the file is not CSV.
    """
    if not path.is_file():
        return
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, cell in row.items():
                    if name not in ("step", "epoch", None) and cell:
                        yield row.get("step"), name, float(cell)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} must hold the metrics of a run: {error}") from None


def is_version(folder: Path) -> bool:
    """Whether a folder has the name of a run directory, version_N."""
    return folder.name.startswith(_VERSION) and folder.name.removeprefix(_VERSION).isdigit()


def versions(root: Path) -> list[RunFolder]:
    """The run directories in a folder, the newest first."""
    found = [RunFolder(path) for path in root.glob(f"{_VERSION}*") if is_version(path)]
    return sorted(found, key=lambda run: run.number, reverse=True)


def claim(root: Path) -> RunFolder:
    """Create the next run directory in a folder; no other process can claim the same.

    Raises:
        OSError: the directory cannot be created.
    """
    number = max((run.number + 1 for run in versions(root)), default=0)
    while True:
        path = root / f"{_VERSION}{number}"
        try:
            path.mkdir(parents=True)
            return RunFolder(path)
        except FileExistsError:
            number += 1


def run_of(checkpoint: Path) -> RunFolder | None:
    """The run directory that a checkpoint is in; None if it is in no run directory."""
    folder = checkpoint.absolute().parent
    run = RunFolder(folder.parent)
    inside = folder.name == CHECKPOINTS and is_version(run.path) and run.config_file.is_file()
    return run if inside else None


def folder_of(trainer: Trainer) -> Path:
    """The run directory of a trainer; collective, since `log_dir` is."""
    return Path(trainer.log_dir or trainer.default_root_dir)
