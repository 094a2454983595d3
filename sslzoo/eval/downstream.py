"""Downstream: abstract base of the modules that train a classifier from given weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.eval.classifier import Classifier, load_weights
from sslzoo.optim import Schedule
from sslzoo.sharding import FullyShard
from sslzoo.trainable import GroupsFactory, OptimizerFactory, Trainable

RANDOM = "random"


class Downstream(Trainable):
    """Training of a classifier, with modules that stay frozen in eval mode.

    Args:
        model: the classifier.
        weights: its initial weights: a checkpoint or .safetensors, or "random", which leaves them
            as they are.
        optimizer: see `Trainable`.
        schedule: see `Trainable`.
        parameter_groups: see `Trainable`.
    """

    takes = ViewSpec(1, 1)

    def __init__(
        self,
        model: Classifier,
        weights: str | None,
        optimizer: OptimizerFactory | None,
        schedule: Schedule | None,
        parameter_groups: GroupsFactory,
    ):
        super().__init__(optimizer, schedule, parameter_groups)
        self.model, self.weights = model, weights
        self._has_weights = False

    @abstractmethod
    def frozen(self) -> nn.Module | None:
        """The module that is not trained, if there is one."""

    def load_initial_weights(self) -> None:
        """Load the weights that training starts from."""
        start_from(self.model, self.weights, "weights")

    def train(self, mode: bool = True) -> Downstream:
        super().train(mode)
        frozen = self.frozen()
        if frozen is not None:
            frozen.eval()
        return self

    def configure_model(self) -> None:
        fresh = self._trainer is not None and self.trainer.ckpt_path is None
        sharded = self._trainer is not None and isinstance(self.trainer.strategy, FullyShard)
        if fresh and sharded and self.trainer.training and not self._has_weights:
            self.load_initial_weights()  # while the parameters are whole
            self._has_weights = True
        super().configure_model()

    def on_train_start(self) -> None:
        super().on_train_start()
        self.train()  # Lightning keeps train flags

    def on_fit_start(self) -> None:
        super().on_fit_start()
        Trainable.train(self)  # Lightning warns of eval mode before `on_train_start`
        if not self._has_weights:
            self.load_initial_weights()
        self._has_weights = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._has_weights = True

    def forward(self, view: View) -> Tensor:
        """Compute logits. Shapes: (B, ...) -> (B, C)."""
        return self.model(view)

    def features(self, view: View) -> Tensor:
        """Compute the backbone's features. Shapes: (B, ...) -> (B, num_features)."""
        return self.model.backbone(view)

    def encoder(self) -> Classifier:
        """The module behind `forward`."""
        return self.model


def start_from(model: Classifier, weights: str | None, name: str, whole: bool = False) -> None:
    """Load the initial weights unless they are "random"; raise if none were given."""
    if weights is None:
        raise ValueError(
            f"{name} must be the checkpoint to start from (--model.{name} "
            f"RUN/checkpoints/last.ckpt) or {RANDOM!r}, got None"
        )
    if weights != RANDOM:
        load_weights(model, weights, whole)


def only_view(batch: Batch, who: str) -> View:
    """Return the single view of a batch, or raise an error if there are several."""
    if len(batch.views) != 1:
        raise ValueError(
            f"{who} must have one view per sample, as from sslzoo.transforms.crop_view, got "
            f"{len(batch.views)}"
        )
    return batch.views[0]
