"""Evaluation of sentence encoders: OnlineSpearman during training, SentenceTable at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sslzoo.atomic_write import atomic_write
from sslzoo.batch import Tokens
from sslzoo.callbacks.compare_with_start import start_of
from sslzoo.callbacks.evaluation import Evaluation, embed, query_set, rehearse
from sslzoo.callbacks.rehearsal import require
from sslzoo.checks import check_classes
from sslzoo.distributed import rank
from sslzoo.eval.features import Features, extract, gather_features
from sslzoo.eval.linear import linear_probe
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.similarity import bag_of_words, mean_of_tokens, scored_spearman
from sslzoo.run_folder import folder_of
from sslzoo.sharding import full

ROWS = {
    "trained": "trained encoder",
    "untrained": "untrained encoder",
    "trained_tokens": "mean of trained token embeddings",
    "untrained_tokens": "mean of untrained token embeddings",
    "words": "bag of words",
}
START = {  # titles with CompareWithStart
    **ROWS,
    "untrained": "start weights",
    "untrained_tokens": "mean of the token embeddings at the start",
}
Embed = Callable[[EvalLoaders, Any], Features]


def pair_loaders(trainer: Trainer, who: str) -> dict[str, EvalLoaders]:
    """The data module's scored pairs by name.

    Raises:
        ValueError: the data module has no `similarity_dataloaders()`.
    """
    make = getattr(getattr(trainer, "datamodule", None), "similarity_dataloaders", None)
    if make is None:
        raise ValueError(
            f"the data module must have similarity_dataloaders() for {who}, got none; use one such "
            "as sslzoo.data.STSB or TextLines(pairs=...)"
        )
    return make()


class OnlineSpearman(Evaluation):
    """Log `val/spearman_<name>`, cosines against scores, for every set of scored pairs.

    Args:
        every_n_epochs: training epochs between two evaluations; the last always has one.
        features: name of the module's method from a view to (B, D).
    """

    reads = "similarity_dataloaders"
    reads_labels = True

    def __init__(self, every_n_epochs: int = 1, features: str = "forward") -> None:
        super().__init__(every_n_epochs, None, features)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise errors that an evaluation would raise before training starts."""
        if not pair_loaders(trainer, "OnlineSpearman"):
            raise ValueError("the data must have scored pairs for OnlineSpearman, got none")

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for loaders in pair_loaders(trainer, "OnlineSpearman").values():
            rehearse(trainer, pl_module, loaders, self)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        scores = {}
        for name, loaders in pair_loaders(trainer, "OnlineSpearman").items():
            own = embed(trainer, pl_module, loaders, loaders.bank, self.features)
            scores[f"val/spearman_{name}"] = scored_spearman(own)
        return scores


class SentenceTable(Callback):
    """Table of the trained encoder and its baselines, printed and written to the run directory.

    Rows: the trained and the untrained encoder, means of their token embeddings, bag of words.
    Columns: Spearman on each set of scored pairs and, if the data has labeled sentences, the
    accuracy of a linear probe. All features are in memory; bag of words takes V numbers per
    sentence. The untrained encoder is scored before the first step; its scores are in the
    checkpoint.

    Args:
        filename: name of the JSON file.
        features: name of the module's method from a view to (B, D).
    """

    def __init__(self, filename: str = "sentence_table.json", features: str = "forward") -> None:
        super().__init__()
        self.filename, self.features = filename, features
        self.scores: dict[str, dict[str, float]] = {}  # row -> column -> fraction

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "SentenceTable", "backbone")
        require(cast(Any, pl_module.backbone), "SentenceTable", "num_ids", "token_embedding")
        if trainer.global_step == 0:
            self._score_encoder(trainer, pl_module, "untrained")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._score_encoder(trainer, pl_module, "trained")
        num_ids = int(cast(Any, pl_module.backbone).num_ids)
        self._score_plain(trainer, pl_module, "words", lambda text: bag_of_words(text, num_ids))
        folder = folder_of(trainer)
        if rank() == 0:
            ordered = {row: self.scores[row] for row in ROWS if row in self.scores}
            atomic_write(folder / self.filename, json.dumps(ordered, indent=1) + "\n")
            self._print(START if start_of(trainer) is not None else ROWS)

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = dict(state_dict["scores"])

    def _score_encoder(self, trainer: Trainer, pl_module: LightningModule, row: str) -> None:
        def encode(loaders: EvalLoaders, loader: Any) -> Features:
            return embed(trainer, pl_module, loaders, loader, self.features)

        self.scores[row] = self._score(trainer, encode)
        table = full(cast(Any, pl_module.backbone).token_embedding.weight.detach())
        plain = lambda text: mean_of_tokens(text, table)  # noqa: E731
        self._score_plain(trainer, pl_module, f"{row}_tokens", plain)

    def _score_plain(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        row: str,
        features: Callable[[Tokens], Tensor],
    ) -> None:
        device = pl_module.device
        self.scores[row] = self._score(
            trainer, lambda loaders, loader: extract(pl_module, loader, loaders, features, device)
        )

    def _score(self, trainer: Trainer, encode: Embed) -> dict[str, float]:
        pairs = pair_loaders(trainer, "SentenceTable")
        scores = {
            f"spearman_{name}": scored_spearman(encode(part, part.bank))
            for name, part in pairs.items()
        }
        loaders: EvalLoaders = cast(Any, trainer).datamodule.eval_dataloaders()
        if loaders.num_classes is not None:
            bank = gather_features(encode(loaders, loaders.bank))
            query = gather_features(encode(loaders, query_set(loaders, "SentenceTable")))
            scores["linear"] = linear_probe(
                bank.features,
                check_classes("SentenceTable", bank.label),
                query.features,
                check_classes("SentenceTable", query.label),
                loaders.num_classes,
            )
        return scores

    def _print(self, rows: dict[str, str]) -> None:
        columns = list(self.scores["trained"])
        table = Table("", *columns)
        for row, title in rows.items():
            scores = self.scores.get(row, {})
            table.add_row(title, *(f"{scores[c]:.3f}" if c in scores else "-" for c in columns))
        Console().print(table)
