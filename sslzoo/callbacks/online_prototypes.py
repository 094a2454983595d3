"""OnlinePrototypes: collapse of a method's assignments made visible (docs/collapse.md)."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslzoo.callbacks.evaluation import Evaluation, embed, eval_loaders
from sslzoo.callbacks.online_spectrum import CollapseWarning
from sslzoo.distributed import sum_over_ranks
from sslzoo.eval.loaders import EvalLoaders


def effective_prototypes(p: Tensor) -> float:
    """How many prototypes tell samples apart: exp of the mutual information of the two.

    That is the entropy of the mean assignment less the mean entropy of an assignment. 1 where all
    samples are assigned alike, be it to one prototype or to all in equal parts; at most K.
    Collective: each rank passes its samples, any number of them.

    Args:
        p: (n, K), rows that sum to 1.
    """
    own = torch.cat([p.sum(0), torch.special.entr(p).sum()[None], p.new_full((1,), len(p))])
    *_, entropies, count = total = sum_over_ranks(own)
    information = torch.special.entr(total[:-2] / count).sum() - entropies / count
    return information.clamp_min(0).exp().item()


class OnlinePrototypes(Evaluation):
    """Logs `val/effective_prototypes` of the query set, for methods that assign samples to some.

    Without a query set the first samples of the bank are taken. Once a run, on rank 0, it warns
    (`CollapseWarning`) where the figure is below its least value. The features of such a method
    may keep apart what its prototypes no longer do, so that `OnlineSpectrum` sees nothing.

    Args:
        max_samples: of all ranks; each has a row of K.
        every_n_epochs: training epochs between two evaluations; the last always has one.
        loaders: as for OnlineKNN; None: those of the data module.
        features: name of the module's method from a view to probabilities (B, K).
        least: below it the warning comes.
        grace: share of the run at whose beginning it does not: prototypes that start at random say
            little of any sample.
    """

    def __init__(
        self,
        max_samples: int = 1024,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "assignments",
        least: float = 1.5,
        grace: float = 0.2,
    ) -> None:
        super().__init__(every_n_epochs, loaders, features)
        if max_samples < 2:
            raise ValueError(f"max_samples must be at least 2, got {max_samples}")
        if not 0 <= grace <= 1:
            raise ValueError(f"grace must be a share of the run, in [0, 1], got {grace}")
        self.max_samples, self.least, self.grace = max_samples, least, grace
        self._warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warned = False

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders = eval_loaders(trainer, self.loaders, "OnlinePrototypes")
        loader = loaders.bank if loaders.query is None else loaders.query
        own = embed(trainer, pl_module, loaders, loader, self.features, limit=self.max_samples)
        count = effective_prototypes(own.features)
        if count < self.least and not self._warned and not self._too_early(trainer):
            self._warned = True
            rank_zero_warn(
                f"the prototypes of {type(pl_module).__name__} have collapsed: they tell samples "
                f"apart as {count:.2f} would (least {self.least:g}); docs/collapse.md says what "
                "this means and where to look",
                category=CollapseWarning,
            )
        return {"val/effective_prototypes": count}

    def _too_early(self, trainer: Trainer) -> bool:
        total = trainer.estimated_stepping_batches
        return trainer.training and trainer.global_step < self.grace * total < float("inf")
