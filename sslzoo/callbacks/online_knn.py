"""OnlineKNN: exact weighted kNN accuracy during training.

Bank and query set are embedded in eval mode without augmentation, each sample once, sharded over
the ranks; the value is the same for any number of ranks.
"""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from sslzoo.callbacks.evaluation import (
    Evaluation,
    embed,
    has_labels,
    labeled_loaders,
    rehearse,
)
from sslzoo.callbacks.rehearsal import num_samples
from sslzoo.checks import check_classes
from sslzoo.eval.knn.classify import check_settings, knn_accuracies
from sslzoo.eval.loaders import EvalLoaders


class OnlineKNN(Evaluation):
    """Log `val/knn_top1_k<k>_t<T>`, and top-5 if asked, for every k and temperature.

    Args:
        k: number of neighbors, or several numbers; 200 in InstDisc, 20 in DINO.
        temperature: T of the vote exp(s / T), or several values; 0.07 in both.
        every_n_epochs: training epochs between two evaluations; the last always has one.
        loaders: bank, query and transform; None: the data module's.
        features: name of the module's method from a view to (B, D).
        top5: whether to log `val/knn_top5_k<k>_t<T>`, too, as DINO reports.
        if_labeled: whether to skip data without labels or query set, which is an error otherwise.
    """

    reads_labels = True

    def __init__(
        self,
        k: int | list[int] = 20,
        temperature: float | list[float] = 0.07,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "forward",
        top5: bool = False,
        if_labeled: bool = False,
    ) -> None:
        super().__init__(every_n_epochs, loaders, features)
        self.if_labeled = if_labeled
        ks = [k] if isinstance(k, int) else list(k)
        self.tops = (1, 5) if top5 else (1,)
        temperatures = list(temperature) if isinstance(temperature, list) else [temperature]
        self.settings = [(k, t) for k in ks for t in temperatures]
        check_settings(self.settings)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise errors that an evaluation would raise before training starts."""
        if not self.skips(trainer):
            labeled_loaders(trainer, self.loaders, "OnlineKNN")

    def skips(self, trainer: Trainer) -> bool:
        return self.if_labeled and not has_labels(trainer, self.loaders, "OnlineKNN")

    def metric_names(self) -> list[str]:
        return [f"val/knn_top{top}_k{k}_t{t:g}" for k, t in self.settings for top in self.tops]

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = labeled_loaders(trainer, self.loaders, "OnlineKNN")[0]
        rehearse(trainer, pl_module, loaders, self, needs_labels=True)
        size, most = num_samples(loaders.bank), max(k for k, _ in self.settings)
        if size is not None and most > size:
            raise ValueError(f"k must be at most {size} (the bank's size), got {most}")

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders, query, num_classes = labeled_loaders(trainer, self.loaders, "OnlineKNN")
        bank = embed(trainer, pl_module, loaders, loaders.bank, self.features)
        asked = embed(trainer, pl_module, loaders, query, self.features)
        accuracies = knn_accuracies(
            asked.features,
            check_classes("OnlineKNN", asked.label),
            bank.features,
            check_classes("OnlineKNN", bank.label),
            num_classes,
            self.settings,
            self.tops,
            bank.index,
        )
        values = [value for row in accuracies for value in row]
        return dict(zip(self.metric_names(), values, strict=True))
