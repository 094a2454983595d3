"""OnlineAccuracy: top-1 of a module whose forward gives logits (`eval.FineTune`, `Distill`)."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer

from sslzoo.callbacks.evaluation import (
    Evaluation,
    classes,
    embed,
    eval_loaders,
    number_of_classes,
    query_set,
)
from sslzoo.distributed import sum_over_ranks
from sslzoo.eval.loaders import EvalLoaders


class OnlineAccuracy(Evaluation):
    """Logs `val/top1`: the share of the query set whose largest logit is its class.

    Args:
        every_n_epochs: training epochs between two evaluations; the last always has one.
        loaders: as for OnlineKNN; None: those of the data module.
        features: name of the module's method from a view to logits (B, C).
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "forward",
    ) -> None:
        super().__init__(every_n_epochs, loaders, features)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What an evaluation would refuse is refused before training."""
        loaders = eval_loaders(trainer, self.loaders, "OnlineAccuracy")
        number_of_classes(loaders, "OnlineAccuracy")
        query_set(loaders, "OnlineAccuracy")

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders = eval_loaders(trainer, self.loaders, "OnlineAccuracy")
        num_classes = number_of_classes(loaders, "OnlineAccuracy")
        query = query_set(loaders, "OnlineAccuracy")
        asked = embed(trainer, pl_module, loaders, query, self.features)
        if asked.features.shape[1] != num_classes:
            raise ValueError(
                f"{type(pl_module).__name__}.{self.features} gives {asked.features.shape[1]} "
                f"logits and the data has {num_classes} classes"
            )
        right = (asked.features.argmax(1) == classes(asked.label, "OnlineAccuracy")).sum()
        sums = torch.stack([right, torch.full_like(right, len(asked.features))])
        correct, total = sum_over_ranks(sums).tolist()
        return {"val/top1": correct / total}
