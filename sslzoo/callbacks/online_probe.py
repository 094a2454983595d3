"""OnlineProbe: a linear classifier trained alongside the encoder without affecting it.

It is trained on the features of each training batch's first view, from a separate forward pass in
eval mode without gradient (so it costs one forward per step and updates no statistics), with its
own SGD. Gradients and standardization are those of the global batch, for any number of ranks.
Shapes: n samples of this rank, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.callbacks.evaluation import (
    Evaluation,
    embed,
    eval_loaders,
    query_set,
    rehearse,
)
from sslzoo.callbacks.rehearsal import NO_LABELS, check_labels
from sslzoo.checks import check_classes
from sslzoo.distributed import sum_over_ranks
from sslzoo.eval.features import eval_mode
from sslzoo.eval.loaders import EvalLoaders

STATISTICS_STEP = 0.05  # minimum rate of the running mean and variance; the first steps average


class OnlineProbe(Evaluation):
    """Train a softmax classifier on standardized features and log `val/probe_top1`.

    Features are standardized by running statistics and divided by sqrt(D), so that a learning
    rate means the same for every width. Weights start from zero: the problem is convex.

    Args:
        num_classes: C; None: the data module's.
        lr: learning rate of SGD on the mean cross-entropy of the global batch.
        momentum: momentum of SGD.
        weight_decay: L2 on the weights, not on the bias.
        every_n_epochs: training epochs between two evaluations; the last always has one.
        loaders: as for OnlineKNN; None: the data module's.
        features: name of the module's method from a view to (B, D).
    """

    reads_labels = True
    has_start = False  # it learns during the run

    def __init__(
        self,
        num_classes: int | None = None,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "forward",
    ) -> None:
        super().__init__(every_n_epochs, loaders, features)
        self.num_classes = num_classes
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        # Made at the first batch, when D is known: weight and velocity (C, D + 1) with the bias as
        # the last column, mean and variance (D,), steps ().
        self.state: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.num_classes is None:
            self.num_classes = getattr(getattr(trainer, "datamodule", None), "num_classes", None)
        if self.num_classes is None and self.loaders is not None:
            self.num_classes = self.loaders.num_classes
        if self.num_classes is None:
            raise ValueError(
                f"num_classes must be given to OnlineProbe or known from the data, {NO_LABELS}"
            )

    def metric_names(self) -> list[str]:
        return ["val/probe_top1"]

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = eval_loaders(trainer, self.loaders, "OnlineProbe")
        loaders = loaders._replace(num_classes=self.num_classes)
        rehearse(trainer, pl_module, loaders, self, needs_labels=True)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.state:
            assert self.num_classes is not None
            view, label = _view_and_label(batch)
            check_labels(
                None, Batch([view], torch.empty(0), label), self.num_classes, "OnlineProbe"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        view, label = _view_and_label(batch)
        if label is None:
            raise ValueError(f"the data must have labels for OnlineProbe, {NO_LABELS}")
        precision = trainer.precision_plugin
        forward = getattr(pl_module, self.features)
        devices = [pl_module.device.index or 0] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), eval_mode(pl_module):
            with precision.forward_context():
                features = forward(precision.convert_input(view)).detach().float()
            self.step(features, check_classes("OnlineProbe", label))

    @torch.no_grad()
    def step(self, features: Tensor, label: Tensor) -> None:
        """Take one SGD step on the global batch. Shapes: (n, D), (n,) int64."""
        self._make(features)
        x = self._standardize(features, update=True)
        logits = x @ self.state["weight"].T
        target = F.one_hot(label, logits.shape[1])
        # Mean over the global batch: the sum over own rows, summed over ranks, divided by N.
        sums = torch.cat([(logits.softmax(1) - target).T @ x, x.new_full((1, x.shape[1]), len(x))])
        sums = sum_over_ranks(sums)
        gradient = sums[:-1] / sums[-1]
        gradient[:, :-1] += self.weight_decay * self.state["weight"][:, :-1]
        self.state["velocity"].mul_(self.momentum).add_(gradient)
        self.state["weight"].add_(self.state["velocity"], alpha=-self.lr)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        if not self.state:
            raise ValueError(
                "OnlineProbe must be trained to evaluate, got no state; run fit first, or load a "
                "checkpoint that was saved with OnlineProbe"
            )
        loaders = eval_loaders(trainer, self.loaders, "OnlineProbe")
        query = query_set(loaders, "OnlineProbe")
        asked = embed(trainer, pl_module, loaders, query, self.features)
        self._make(asked.features)
        scores = self._standardize(asked.features, update=False) @ self.state["weight"].T
        right = (scores.argmax(1) == check_classes("OnlineProbe", asked.label)).sum()
        sums = torch.stack([right, torch.full_like(right, len(scores))])
        correct, total = sum_over_ranks(sums).tolist()
        return {"val/probe_top1": correct / total}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = dict(state_dict)

    def _make(self, features: Tensor) -> None:
        """Create the state on the features' device."""
        width = features.shape[1]
        if not self.state:
            assert self.num_classes is not None
            zeros = features.new_zeros(self.num_classes, width + 1)
            self.state = {
                "weight": zeros,
                "velocity": zeros.clone(),
                "mean": features.new_zeros(width),
                "variance": features.new_zeros(width),
                "steps": features.new_zeros(()),
            }
        if self.state["mean"].shape[0] != width:
            wanted = self.state["mean"].shape[0]
            raise ValueError(
                f"features must be (n, {wanted}), as OnlineProbe was trained, got {width} columns"
            )
        self.state = {name: x.to(features.device) for name, x in self.state.items()}

    def _standardize(self, features: Tensor, update: bool) -> Tensor:
        """Standardize, divide by sqrt(D) and append a 1 for the bias. (n, D) -> (n, D + 1)."""
        if update:
            count = features.new_full((1, features.shape[1]), len(features))
            sums = torch.cat([features.sum(0, True), features.square().sum(0, True), count])
            total, squares, n = sum_over_ranks(sums.double())
            mean = (total / n).float()
            variance = (squares / n - (total / n).square()).clamp_min(0).float()
            self.state["steps"] += 1
            share = (1 / self.state["steps"]).clamp_min(STATISTICS_STEP)
            self.state["mean"].lerp_(mean, share)
            self.state["variance"].lerp_(variance, share)
        scale = (self.state["variance"] + 1e-8).rsqrt() / features.shape[1] ** 0.5
        return F.pad((features - self.state["mean"]) * scale, (0, 1), value=1.0)


def _view_and_label(batch: Any) -> tuple[Tensor, Tensor | None]:
    """First view and label of a Batch, ((view, view), label) or (image, label)."""
    if isinstance(batch, Batch):
        return batch.views[0], batch.label
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        views, label = batch
        return (views[0] if isinstance(views, (tuple, list)) else views), label
    raise ValueError(
        "a batch must be a Batch or a pair (views, labels) for OnlineProbe, got "
        f"{type(batch).__name__}"
    )
