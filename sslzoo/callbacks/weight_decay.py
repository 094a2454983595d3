"""WeightDecaySchedule: weight decay that changes with the optimizer step (DINO, iBOT, I-JEPA)."""

from __future__ import annotations

from typing import Any, Protocol, cast

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from sslzoo.callbacks.rehearsal import require
from sslzoo.optim import RunLength, Schedule


class Clock(Protocol):
    """Protocol of the methods that `WeightDecaySchedule` accepts."""

    step: int
    run_length: RunLength


class WeightDecaySchedule(Callback):
    """Set each nonzero weight decay to schedule(k) at step k.

    Groups with a weight decay of 0 (biases and norms, see `optim.exempt_bias_and_norm`) keep it.

    Args:
        schedule: weight decay per step, above 0; `CosineSchedule(0.04, 0.4)` in DINO and I-JEPA.

    Raises:
        ValueError: the schedule gives 0 or less.
    """

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def update(self, method: Clock, optimizer: Optimizer) -> None:
        """Set the decay of the next step; a plain loop calls it before each step."""
        value = self.schedule(method.step, method.run_length)
        if not value > 0:  # after a resume, such a group would look like one without decay
            raise ValueError(f"weight decay must be above 0, got {value} at step {method.step}")
        for group in optimizer.param_groups:
            if group["weight_decay"] != 0:
                group["weight_decay"] = value

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "WeightDecaySchedule", "step", "run_length")
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if not any(group.get("weight_decay") for group in groups):
            raise ValueError(
                "weight_decay must be above 0 in the optimizer for WeightDecaySchedule, which "
                "leaves groups of 0 as they are, got 0 in every group"
            )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        self.update(cast(Clock, pl_module), optimizer)
