"""SSLMethod: what every self-supervised method is.

A method has four duties and no fifth: hold `backbone`; `forward(view)`, the features that its
paper evaluates; `training_step`, which logs and sums the terms of `losses`; and
`configure_optimizers`, from two callables. The last two are `Trainable`'s. It works in a Lightning
Trainer on one device or under DDP, and in a plain loop (docs/plain_loop.md).
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, View, as_batch
from sslzoo.distributed import row_layout
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys
from sslzoo.trainable import GroupsFactory, OptimizerFactory, Trainable

__all__ = [
    "GroupsFactory",
    "OptimizerFactory",
    "SSLMethod",
    "frozen_copy",
    "output_dim",
    "step_keys",
]

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(module: Module) -> Module:
    """A teacher: equal to `module` now, without gradient, moved later by `EMA` alone."""
    return copy.deepcopy(module).requires_grad_(False)


def output_dim(backbone: nn.Module, *heads: nn.Module) -> int:
    """The width at the end of backbone and heads, each on top of the one before.

    Raises:
        ValueError: a head has no `in_features` and `out_features`, or not the width below it.
    """
    width = int(cast(Any, backbone).num_features)
    for head in heads:
        takes, gives = getattr(head, "in_features", None), getattr(head, "out_features", None)
        name = type(head).__name__
        if not isinstance(takes, int) or not isinstance(gives, int):
            raise ValueError(f"a head has in_features and out_features (int); {name} has not")
        if takes != width:
            raise ValueError(f"{name} takes {takes} features and what is below it gives {width}")
        width = gives
    return width


def step_keys(method: SSLMethod, batch: Batch) -> Keys:
    """A key for each sample's draws of this step.

    Of the sample's index; of its place in the global batch where a foreign loader gives none.
    """
    index = batch.index
    if len(index) == 0:
        view = batch.views[0]
        values = view if isinstance(view, Tensor) else view[0]
        start = row_layout(len(values)).start
        index = torch.arange(start, start + len(values), device=values.device)
    return Keys(index).fold(method.seed, method.step)


class SSLMethod(Trainable):
    """Base of all methods; a subclass writes `losses`.

    Args:
        backbone: nn.Module with `num_features`; (B, ...) -> (B, num_features).
        optimizer: called with the parameter groups; needed by `fit`, not by a plain loop.
        schedule: called with the optimizer and the run's `RunLength`; None: a constant rate.
        parameter_groups: called with the method: which parameters get weight decay.

    Attributes:
        step: optimizer steps taken so far; saved, and the clock of every schedule.
        run_length: length of the run; saved, and kept when a finished run is extended.
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(optimizer, schedule, parameter_groups)
        if not isinstance(getattr(backbone, "num_features", None), int):
            raise ValueError(
                f"a backbone needs the attribute num_features (int), {type(backbone).__name__} "
                f"has {getattr(backbone, 'num_features', None)!r}"
            )
        self.backbone = backbone

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(student, teacher) modules that `EMA` keeps together; none by default."""
        return []

    def forward(self, view: View) -> Tensor:
        """Features that the paper evaluates. Shapes: (B, ...) -> (B, num_features)."""
        return self.encoder()(view)

    def encoder(self) -> nn.Module:
        """The module behind `forward`: what kNN, probes, export and the zoo get."""
        return self.backbone

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        """Features (B, num_features), labels and indices of a batch."""
        batch = as_batch(batch)
        return {"features": self(batch.views[0]), "label": batch.label, "index": batch.index}
