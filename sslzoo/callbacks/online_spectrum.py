"""OnlineSpectrum: detect collapse during training, without labels (docs/collapse.md)."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.callbacks.evaluation import Evaluation, embed, eval_loaders
from sslzoo.eval.features import gather_features
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.spectrum import effective_rank, feature_std

LEAST_RANK, LEAST_SPREAD = 2.0, 0.05  # below them the features have collapsed: see OnlineSpectrum


class CollapseWarning(UserWarning):
    """Warning that the features have collapsed to a point or a line."""


class OnlineSpectrum(Evaluation):
    """Log `val/effective_rank` (RankMe) and `val/feature_std` of the query set.

    Without a query set, the first samples of the bank are used. Once per run, on rank 0, it warns
    (`CollapseWarning`) if the effective rank or the spread, feature_std * sqrt(D), is below its
    minimum. For methods without negatives, set `features="embed"`: their loss can make the
    projections constant.

    Args:
        max_samples: number of samples over all ranks; 25,600 in RankMe.
        every_n_epochs: training epochs between two evaluations; the last always has one.
        loaders: as for OnlineKNN; None: the data module's.
        features: name of the module's method from a view to (B, D).
        least_rank: minimum effective rank; below 2 the features have fewer than two directions of
            similar size.
        least_spread: minimum spread. The spread is at most the square root of 1 - the mean cosine
            of two samples, and 1 for features uniform on the sphere; below 0.05 that cosine is
            above 0.9975, or nearly all dimensions are constant.
    """

    def __init__(
        self,
        max_samples: int = 25_600,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "forward",
        least_rank: float = LEAST_RANK,
        least_spread: float = LEAST_SPREAD,
    ) -> None:
        super().__init__(every_n_epochs, loaders, features)
        if max_samples < 2:
            raise ValueError(f"max_samples must be at least 2, got {max_samples}")
        self.max_samples = max_samples
        self.least_rank, self.least_spread = least_rank, least_spread
        self._warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warned = False

    def metric_names(self) -> list[str]:
        return ["val/effective_rank", "val/feature_std"]

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders = eval_loaders(trainer, self.loaders, "OnlineSpectrum")
        loader = loaders.bank if loaders.query is None else loaders.query
        own = embed(trainer, pl_module, loaders, loader, self.features, limit=self.max_samples)
        features = gather_features(own).features
        rank, std = effective_rank(features).item(), feature_std(features).mean().item()
        self._warn_of_collapse(rank, std * features.shape[1] ** 0.5)
        return {"val/effective_rank": rank, "val/feature_std": std}

    def _warn_of_collapse(self, rank: float, spread: float) -> None:
        if self._warned or (rank >= self.least_rank and spread >= self.least_spread):
            return
        self._warned = True
        rank_zero_warn(
            f"the features of {self.features!r} have collapsed: the effective rank is {rank:.2f} "
            f"(should be at least {self.least_rank:g}) and the spread {spread:.3f} (should be at "
            f"least {self.least_spread:g}); docs/collapse.md explains causes and remedies",
            category=CollapseWarning,
        )
