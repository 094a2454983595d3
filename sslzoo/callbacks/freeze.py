"""FreezeFirstSteps: a part of a method that does not move in the first optimizer steps.

The part gets its gradients, and loses them before the step, so that the optimizer leaves it
alone: no decay, no momentum. SwAV and DINO freeze their prototypes in this way.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from lightning import Callback, LightningModule, Trainer


class Clocked(Protocol):
    """What `FreezeFirstSteps` needs of a method."""

    step: int

    def get_submodule(self, target: str) -> torch.nn.Module: ...


class FreezeFirstSteps(Callback):
    """Drops the gradients of one module before each of the first optimizer steps.

    Args:
        module: its name in the method, such as `prototypes`.
        steps: how many optimizer steps.
    """

    def __init__(self, module: str, steps: int):
        if steps < 0:
            raise ValueError(f"the number of steps is at least 0, got {steps}")
        self.module, self.steps = module, steps

    def drop_gradients(self, method: Clocked) -> None:
        """A plain loop calls it between `backward` and `optimizer.step`."""
        if method.step < self.steps:
            for parameter in method.get_submodule(self.module).parameters():
                parameter.grad = None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        self.drop_gradients(cast(Clocked, pl_module))
