"""OnlineLinear: linear probe accuracy during training, fitted anew at each evaluation.

It is the protocol of `sslzoo eval`: a logistic regression on the features of the whole bank. Unlike
`OnlineProbe`, which learns during the run, it also evaluates the start weights.
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
from sslzoo.checks import check_classes
from sslzoo.eval.features import gather_features
from sslzoo.eval.linear import linear_probe
from sslzoo.eval.loaders import EvalLoaders


class OnlineLinear(Evaluation):
    """Log `val/linear_top1`, the test accuracy of a linear probe fitted to the bank.

    All features are in the memory of every rank.

    Args:
        l2: L2 weights; see `sslzoo.eval.linear.linear_probe`.
        every_n_epochs: training epochs between two evaluations; the last always has one.
        loaders: as for OnlineKNN; None: the data module's.
        features: name of the module's method from a view to (B, D).
        if_labeled: whether to skip data without labels or query set, which is an error otherwise.
    """

    reads_labels = True

    def __init__(
        self,
        l2: tuple[float, ...] = (1e-3, 1e-2, 1e-1),
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "forward",
        if_labeled: bool = False,
    ) -> None:
        super().__init__(every_n_epochs, loaders, features)
        if not l2 or min(l2) < 0:
            raise ValueError(f"l2 must be one or more weights of at least 0, got {l2}")
        self.l2, self.if_labeled = l2, if_labeled

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise errors that an evaluation would raise before training starts."""
        if not self.skips(trainer):
            labeled_loaders(trainer, self.loaders, "OnlineLinear")

    def skips(self, trainer: Trainer) -> bool:
        return self.if_labeled and not has_labels(trainer, self.loaders, "OnlineLinear")

    def metric_names(self) -> list[str]:
        return ["val/linear_top1"]

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = labeled_loaders(trainer, self.loaders, "OnlineLinear")[0]
        rehearse(trainer, pl_module, loaders, self, needs_labels=True)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders, query, num_classes = labeled_loaders(trainer, self.loaders, "OnlineLinear")
        train, test = (
            gather_features(embed(trainer, pl_module, loaders, loader, self.features))
            for loader in (loaders.bank, query)
        )
        labels, truth = (check_classes("OnlineLinear", part.label) for part in (train, test))
        accuracy = linear_probe(
            train.features, labels, test.features, truth, num_classes, list(self.l2)
        )
        return {"val/linear_top1": accuracy}
