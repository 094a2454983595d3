"""OnlinePrototypes: detect collapse of a method's prototype assignments (docs/collapse.md)."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslzoo.callbacks.evaluation import Evaluation, embed, eval_loaders
from sslzoo.callbacks.online_spectrum import CollapseWarning
from sslzoo.distributed import sum_over_ranks
from sslzoo.eval.loaders import EvalLoaders

LEAST_PROTOTYPES = 1.5  # below it the assignments have collapsed: see OnlinePrototypes


def effective_prototypes(p: Tensor) -> float:
    """Effective number of prototypes: exp of the mutual information of samples and prototypes.

    The mutual information is the entropy of the mean assignment minus the mean entropy of the
    assignments. The value is 1 if all samples have the same assignment, be it to one prototype or
    uniformly to all; at most K. Collective: each rank passes its own samples, in any number.

    Args:
        p: (n, K) assignments, rows that sum to 1.
    """
    own = torch.cat([p.sum(0), torch.special.entr(p).sum()[None], p.new_full((1,), len(p))])
    *_, entropies, count = total = sum_over_ranks(own)
    information = torch.special.entr(total[:-2] / count).sum() - entropies / count
    return information.clamp_min(0).exp().item()


class OnlinePrototypes(Evaluation):
    """Log `val/effective_prototypes` of the query set, for methods that assign prototypes.

    Without a query set, the first samples of the bank are used. Once per run, on rank 0, it warns
    (`CollapseWarning`) if the value is below its minimum. The features of such a method may still
    separate samples that its prototypes do not, so that `OnlineSpectrum` detects nothing.

    Args:
        max_samples: number of samples over all ranks.
        every_n_epochs: training epochs between two evaluations; the last always has one.
        loaders: as for OnlineKNN; None: the data module's.
        features: name of the module's method from a view to probabilities (B, K).
        least: minimum value, below which it warns.
        grace: fraction of the run at the beginning without warnings, since random initial
            prototypes hardly separate samples.
    """

    def __init__(
        self,
        max_samples: int = 1024,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "assignments",
        least: float = LEAST_PROTOTYPES,
        grace: float = 0.2,
    ) -> None:
        super().__init__(every_n_epochs, loaders, features)
        if max_samples < 2:
            raise ValueError(f"max_samples must be at least 2, got {max_samples}")
        if not 0 <= grace <= 1:
            raise ValueError(f"grace must be in [0, 1], a fraction of the run, got {grace}")
        self.max_samples, self.least, self.grace = max_samples, least, grace
        self._warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warned = False

    def metric_names(self) -> list[str]:
        return ["val/effective_prototypes"]

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders = eval_loaders(trainer, self.loaders, "OnlinePrototypes")
        loader = loaders.bank if loaders.query is None else loaders.query
        own = embed(trainer, pl_module, loaders, loader, self.features, limit=self.max_samples)
        count = effective_prototypes(own.features)
        if count < self.least and not self._warned and not self._too_early(trainer):
            self._warned = True
            rank_zero_warn(
                f"the prototypes of {type(pl_module).__name__} have collapsed: their effective "
                f"number is {count:.2f} (should be at least {self.least:g}); docs/collapse.md "
                "explains causes and remedies",
                category=CollapseWarning,
            )
        return {"val/effective_prototypes": count}

    def _too_early(self, trainer: Trainer) -> bool:
        total = trainer.estimated_stepping_batches
        return trainer.training and trainer.global_step < self.grace * total < float("inf")
