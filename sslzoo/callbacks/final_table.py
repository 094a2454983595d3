"""FinalTable: table of trained encoder, untrained encoder and raw pixels at the end of fit.

With `CompareWithStart`, the second row is called the start weights, and the first has differences.

The columns are kNN and linear-probe accuracy, also on changed samples; the checkpoint and the next
command follow. The untrained encoder is scored before the first step and only its scores are kept
(in the checkpoint too), so that no weights are copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sslzoo.atomic_write import atomic_write
from sslzoo.batch import Batch
from sslzoo.callbacks.compare_with_start import start_of
from sslzoo.callbacks.evaluation import embed, labeled_loaders
from sslzoo.checks import check_at_least, check_classes
from sslzoo.distributed import rank
from sslzoo.eval.features import Features, extract, gather_features
from sslzoo.eval.knn.classify import check_settings, knn_top1
from sslzoo.eval.linear import linear_probe
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.random import rows_per_class
from sslzoo.run_folder import folder_of

ROWS = {"trained": "trained encoder", "untrained": "untrained encoder", "raw": "raw pixels"}


class FinalTable(Callback):
    """Print the table on rank 0 and write it as JSON into the run directory.

    It is for sets whose features fit in memory, as the linear probe is fitted on rank 0.

    Args:
        k: number of neighbors.
        temperature: temperature of the kNN vote.
        labels_per_class: labeled samples per class that the linear probe is fitted to; None: all.
        draws: draws of these samples, over which the probe's accuracy is averaged.
        change: changes a raw batch of bank or query set, such as `sslzoo.transforms.Displace`; the
            scores of the changed samples are two further columns.
        changed: what the changed samples are called.
        next_command: printed last, with `{checkpoint}` replaced by the checkpoint's path and
            `{folder}` by the run's; "": nothing is printed.
        filename: name of the JSON file.
        loaders: as for OnlineKNN; None: the data module's.
        features: name of the module's method from a view to (B, D).
    """

    def __init__(
        self,
        k: int = 20,
        temperature: float = 0.07,
        labels_per_class: int | None = None,
        draws: int = 5,
        change: Callable[[Batch], Batch] | None = None,
        changed: str = "changed",
        next_command: str = "sslzoo predict --config {folder}/config.yaml --ckpt_path {checkpoint}",
        filename: str = "final_table.json",
        loaders: EvalLoaders | None = None,
        features: str = "forward",
    ) -> None:
        super().__init__()
        check_settings([(k, temperature)])
        check_at_least("labels_per_class", 1 if labels_per_class is None else labels_per_class, 1)
        check_at_least("draws", draws, 1)
        self.k = k
        self.temperature = temperature
        self.labels_per_class, self.draws = labels_per_class, draws
        self.change, self.changed = change, changed
        self.next_command = next_command
        self.filename = filename
        self.loaders = loaders
        self.features = features
        self.scores: dict[str, dict[str, float]] = {}  # row -> column -> fraction
        self._folder = Path()
        self._continues = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self.scores = {"untrained": self._score_encoder(trainer, pl_module)}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the encoder while the device and all ranks are available; later they are not."""
        self.scores["trained"] = self._score_encoder(trainer, pl_module)
        self.scores["raw"] = self._score_raw(trainer, pl_module)
        self._folder = folder_of(trainer)
        self._continues = start_of(trainer) is not None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and the path of the checkpoint, which is saved in `on_train_end`."""
        if trainer.is_global_zero:
            checkpoint = _checkpoint(trainer)
            self._write(self._folder / self.filename, checkpoint)
            self._print(checkpoint, self._folder)

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = dict(state_dict["scores"])

    def _score_encoder(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        def encode(loaders: EvalLoaders, loader: Any) -> Features:
            return embed(trainer, pl_module, loaders, loader, self.features)

        return self._score_all(trainer, encode)

    def _score_raw(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        def pixels(loaders: EvalLoaders, loader: Any) -> Features:
            return extract(pl_module, loader, loaders, _flatten, pl_module.device)

        return self._score_all(trainer, pixels)

    def _score_all(
        self, trainer: Trainer, encode: Callable[[EvalLoaders, Any], Features]
    ) -> dict[str, float]:
        loaders, query, num_classes = labeled_loaders(trainer, self.loaders, "FinalTable")

        def score(loaders: EvalLoaders) -> dict[str, float]:
            return self._score(encode(loaders, loaders.bank), encode(loaders, query), num_classes)

        scores = score(loaders)
        if self.change is not None:
            change, view = self.change, loaders.transform
            changed = score(loaders._replace(transform=lambda batch: view(change(batch))))
            scores |= {f"changed_{name}": value for name, value in changed.items()}
        return scores

    def _score(self, bank: Features, query: Features, num_classes: int) -> dict[str, float]:
        """Compute both accuracies, the linear probe's on rank 0 only."""
        bank = bank._replace(label=check_classes("FinalTable", bank.label))
        query = query._replace(label=check_classes("FinalTable", query.label))
        setting = [(self.k, self.temperature)]
        knn = knn_top1(
            query.features,
            cast(Tensor, query.label),
            bank.features,
            cast(Tensor, bank.label),
            num_classes,
            setting,
            bank.index,
        )
        scores = {"knn": knn[0]}
        train, test = gather_features(bank), gather_features(query)
        if rank() == 0:
            labels = cast(Tensor, train.label)
            few = self.labels_per_class
            seeds = range(1 if few is None else self.draws)
            rows = [slice(None) if few is None else rows_per_class(labels, few, s) for s in seeds]
            accuracies = [
                linear_probe(
                    train.features[part],
                    labels[part],
                    test.features,
                    cast(Tensor, test.label),
                    num_classes,
                )
                for part in rows
            ]
            scores["linear"] = sum(accuracies) / len(accuracies)
        return scores

    def _write(self, path: Path, checkpoint: str) -> None:
        about = {"k": self.k, "temperature": self.temperature, "checkpoint": checkpoint}
        about |= {"labels_per_class": self.labels_per_class, "changed": self.changed}
        about |= {"baseline": "start weights"} if self._continues else {}
        atomic_write(path, json.dumps({"scores": self.scores, **about}, indent=2) + "\n")

    def _print(self, checkpoint: str, folder: Path) -> None:
        few = self.labels_per_class
        columns = {
            "knn": f"kNN (k {self.k}, T {self.temperature:g})",
            "linear": "linear probe" if few is None else f"linear probe, {few} labels per class",
        }
        if self.change is not None:
            columns |= {
                f"changed_{key}": f"{self.changed}: {text}" for key, text in columns.items()
            }
        table = Table()
        table.add_column("accuracy", no_wrap=True)
        for text in columns.values():
            table.add_column(text)
        for row, title in ROWS.items():
            scores = self.scores.get(row, {})
            cells = [f"{scores[name]:.3f}" if name in scores else "-" for name in columns]
            if self._continues and row == "trained":
                start = self.scores.get("untrained", {})
                changes = [f" ({scores[n] - start[n]:+.3f})" if n in start else "" for n in columns]
                cells = [cell + change for cell, change in zip(cells, changes, strict=True)]
            if self._continues and row == "untrained":
                title = "start weights"
            table.add_row(title, *cells)
        console = Console()
        console.print(table)
        if checkpoint and self.next_command:
            # Neither wrapped nor marked up, so that both lines can be copied.
            print(f"checkpoint: {checkpoint}")
            print(f"next: {self.next_command.format(checkpoint=checkpoint, folder=folder)}")


def _flatten(view: Tensor) -> Tensor:
    return view.flatten(1)


def _checkpoint(trainer: Trainer) -> str:
    """Path of the best checkpoint, otherwise of the last; empty if there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            return callback.best_model_path or callback.last_model_path
    return ""
