"""OnlineAccuracy: metrics of a classifier's logits, by default top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from sslzoo.callbacks.evaluation import Evaluation, embed, labeled_loaders
from sslzoo.callbacks.rehearsal import check_labels, embed_first, first_batch
from sslzoo.checks import check_classes
from sslzoo.eval.features import gather_features
from sslzoo.eval.loaders import EvalLoaders


class OnlineAccuracy(Evaluation):
    """Log `val/<name>` per torchmetrics metric of the whole query set's logits and labels.

    The logits of all ranks are gathered first, so a metric has the same value for any number of
    ranks.

    Args:
        every_n_epochs: training epochs between two evaluations; the last epoch always has one.
        loaders: as for `OnlineKNN`; None: the data module's.
        features: name of the module's method from a view to logits (B, C).
        metrics: torchmetrics by name, each updated with logits (N, C) and labels (N,), or
            multi-hot labels (N, C). A metric of one value per class (`average: none`) is logged as
            `val/<name>_<class>`, a matrix as `val/<name>_<row>_<column>`. None: `top1`, and `top5`
            if there are more than 5 classes.

    Raises:
        ValueError: the data has no labels or no query set, or the number of logits differs from
            the number of classes.
    """

    reads_labels = True

    def __init__(
        self,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "forward",
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__(every_n_epochs, loaders, features)
        self.metrics = metrics

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise errors that an evaluation would raise before training starts."""
        labeled_loaders(trainer, self.loaders, "OnlineAccuracy")

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders, query, num_classes = labeled_loaders(trainer, self.loaders, "OnlineAccuracy")
        first = first_batch(query)
        logits = embed_first(trainer, pl_module, loaders, first, self.features)
        if logits is None:
            return
        self._check_logits(pl_module, logits, num_classes)
        if first.label is None or first.label.shape != logits.shape:
            check_labels(query, first, num_classes, "OnlineAccuracy")

    def _check_logits(self, pl_module: LightningModule, logits: Tensor, num_classes: int) -> None:
        if logits.shape[1] != num_classes:
            raise ValueError(
                f"{type(pl_module).__name__}.{self.features} must give {num_classes} logits, the "
                f"number of classes of the data, got {logits.shape[1]}"
            )

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders, query, num_classes = labeled_loaders(trainer, self.loaders, "OnlineAccuracy")
        own = embed(trainer, pl_module, loaders, query, self.features)
        self._check_logits(pl_module, own.features, num_classes)
        every = gather_features(own)
        label = every.label
        if label is None or label.shape != every.features.shape:
            label = check_classes("OnlineAccuracy", label)
        values: dict[str, float] = {}
        for name, metric in (self.metrics or _accuracies(num_classes)).items():
            metric = metric.to(every.features.device)
            metric.distributed_available_fn = bool  # every rank has all rows already
            metric.reset()
            metric.update(every.features, label)
            value = metric.compute()
            for position in value.new_ones(value.shape).nonzero().tolist():
                key = "_".join([f"val/{name}", *map(str, position)])
                values[key] = float(value[tuple(position)])
        return values


def _accuracies(num_classes: int) -> dict[str, Metric]:
    ks = [k for k in (1, 5) if k == 1 or k < num_classes]
    return {f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in ks}
