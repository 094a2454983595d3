"""SSLMethod: the base class of all self-supervised methods.

A method has four duties: it holds `backbone`; `forward(view)` returns the features that its paper
evaluates; `training_step` logs and sums the terms of `losses`; `configure_optimizers` builds the
optimizer and its schedule. The last two are inherited from `Trainable`. A method works in a
Lightning Trainer on one device, under DDP or sharded (FSDP2), and in a plain loop
(docs/plain_loop.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, View, as_batch
from sslzoo.checks import check_num_features
from sslzoo.distributed import row_layout
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys, run_keys
from sslzoo.trainable import GroupsFactory, OptimizerFactory, Trainable

__all__ = [
    "GroupsFactory",
    "OptimizerFactory",
    "SSLMethod",
    "frozen_copy",
    "output_dim",
    "predictor_dim",
    "step_keys",
    "step_permutation",
]

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(module: Module) -> Module:
    """Copy a module as a teacher: without gradient, updated by `EMA` alone."""
    return copy.deepcopy(module).requires_grad_(False)


def output_dim(backbone: nn.Module, *heads: nn.Module) -> int:
    """Output width of the backbone followed by the heads; checks that their widths fit.

    `torch.nn.Identity`, no head, has the width of its input.

    Raises:
        ValueError: a head without `in_features` and `out_features`, or with the wrong width.
    """
    width = check_num_features(backbone, "backbone")
    for head in heads:
        if isinstance(head, nn.Identity):
            continue
        in_dim, out_dim = getattr(head, "in_features", None), getattr(head, "out_features", None)
        name = type(head).__name__
        if not isinstance(in_dim, int) or not isinstance(out_dim, int):
            raise ValueError(
                f"a head must have in_features and out_features (int), got {name} with {in_dim!r} "
                f"and {out_dim!r}"
            )
        if in_dim != width:
            raise ValueError(
                f"{name} must have in_features {width}, the width of its input, got {in_dim}"
            )
        width = out_dim
    return width


def predictor_dim(backbone: nn.Module, projector: nn.Module, predictor: nn.Module) -> int:
    """Output width of the projector; checks that the predictor has the same.

    Raises:
        ValueError: widths that do not fit, see `output_dim`, or another width of the prediction.
    """
    dim = output_dim(backbone, projector)
    predicted = output_dim(backbone, projector, predictor)
    if predicted != dim:
        raise ValueError(
            f"predictor must have out_features {dim}, the width of the projections that it "
            f"predicts, got {predicted}"
        )
    return dim


def step_keys(method: SSLMethod, batch: Batch) -> Keys:
    """One key per sample for the random draws of this step.

    Keys depend on the sample's index, or, if the data loader gives none, on its position in the
    global batch.
    """
    index = batch.index
    if len(index) == 0:
        view = batch.views[0]
        values = view if isinstance(view, Tensor) else view[0]
        start = row_layout(len(values)).start
        index = torch.arange(start, start + len(values), device=values.device)
    return Keys(index).fold(method.seed, method.step)


def step_permutation(
    method: SSLMethod, purpose: str, device: torch.device
) -> Callable[[int], Tensor]:
    """This step's permutation of a global batch of any size, the same on every rank.

    Returns:
        N -> (N,) int64, for `encode_shuffled`.
    """
    keys = run_keys(method.seed, method.step, device=device)
    return lambda n: keys.permutation(purpose, n)[0]


class SSLMethod(Trainable):
    """Abstract base of all methods; a subclass implements `losses`.

    Args:
        backbone: nn.Module with `num_features`; (B, ...) -> (B, num_features).
        optimizer: called with the parameter groups, returns the optimizer; needed by `fit`, not by
            a plain loop.
        schedule: factor of the learning rates at each optimizer step; None: constant rates.
        parameter_groups: called with the method, returns the parameter groups, which decide on the
            weight decay of each parameter.

    Attributes:
        step: optimizer steps taken so far, the clock of every schedule; saved in checkpoints.
        run_length: length of the run; saved in checkpoints, kept when a finished run is extended.
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(optimizer, schedule, parameter_groups)
        check_num_features(backbone, "backbone")
        self.backbone = backbone

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The (student, teacher) modules that `EMA` updates; none by default."""
        return []

    def forward(self, view: View) -> Tensor:
        """Features that the paper evaluates. (B, ...) -> (B, num_features)."""
        return self.encoder()(view)

    def encoder(self) -> nn.Module:
        """The module behind `forward`, which kNN, probes, export and the zoo use."""
        return self.backbone

    def at_step(self, schedule: Schedule) -> float:
        """Value of a schedule at the current optimizer step."""
        return schedule(self.step, self.run_length)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        """Features (B, num_features), labels and indices of a batch."""
        batch = as_batch(batch)
        return {"features": self(batch.views[0]), "label": batch.label, "index": batch.index}
