"""OnlineSpectrum: collapse made visible during training, without labels."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from sslzoo.callbacks.evaluation import Evaluation, embed, eval_loaders
from sslzoo.eval.features import gather_features
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.spectrum import effective_rank, feature_std


class OnlineSpectrum(Evaluation):
    """Logs `val/effective_rank` (RankMe) and `val/feature_std` of the query set.

    Without a query set the first samples of the bank are taken.

    Args:
        max_samples: of all ranks; RankMe's 25,600.
        every_n_epochs: training epochs between two evaluations; the last always has one.
        loaders: as for OnlineKNN; None: those of the data module.
        features: name of the module's method from a view to (B, D).
    """

    def __init__(
        self,
        max_samples: int = 25_600,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "forward",
    ) -> None:
        super().__init__(every_n_epochs, loaders, features)
        if max_samples < 2:
            raise ValueError(f"max_samples must be at least 2, got {max_samples}")
        self.max_samples = max_samples

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders = eval_loaders(trainer, self.loaders, "OnlineSpectrum")
        loader = loaders.bank if loaders.query is None else loaders.query
        own = embed(trainer, pl_module, loaders, loader, self.features, limit=self.max_samples)
        features = gather_features(own).features
        return {
            "val/effective_rank": effective_rank(features).item(),
            "val/feature_std": feature_std(features).mean().item(),
        }
