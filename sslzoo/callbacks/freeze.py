"""FreezeUntil: keep a module frozen at the start of a run.

Its gradients are dropped before the optimizer step, so that the optimizer skips it: no decay, no
momentum, as in DINO's and SwAV's code. Gradients still flow through it to the rest of the network.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from sslzoo.callbacks.rehearsal import require
from sslzoo.optim import RunLength


class Clock(Protocol):
    """Protocol of the methods that `FreezeUntil` accepts."""

    step: int
    run_length: RunLength

    def get_submodule(self, target: str) -> nn.Module: ...


class FreezeUntil(Callback):
    """Drop the gradients of one module during the first epochs or optimizer steps.

    Args:
        module: name within the method: "head.last_layer" (DINO), "prototypes" (SwAV).
        epochs: duration in epochs (fractions allowed); 1 in DINO.
        steps: duration in optimizer steps, instead; 313 in SwAV.

    Raises:
        ValueError: both durations or a negative one are given; the method does not have the module.
    """

    def __init__(self, module: str, epochs: float = 0.0, steps: int = 0):
        if (epochs and steps) or epochs < 0 or steps < 0:
            raise ValueError(
                "epochs and steps must be at least 0 and not both above 0, got "
                f"{epochs} and {steps}"
            )
        self.module, self.epochs, self.steps = module, epochs, steps

    def drop(self, method: Clock) -> None:
        """Drop the gradients while frozen; a plain loop calls it before `optimizer.step()`."""
        steps = self.steps or method.run_length.steps(self.epochs)
        if method.step < steps:
            for parameter in self._frozen(method).parameters():
                parameter.grad = None

    def _frozen(self, method: Clock) -> nn.Module:
        try:
            return method.get_submodule(self.module)
        except AttributeError as error:
            raise ValueError(
                f"module must be a submodule of {type(method).__name__}, got {self.module!r}"
            ) from error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "FreezeUntil", "step", "run_length")
        self._frozen(cast(Clock, pl_module))  # fail at once if the name is wrong

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self.drop(cast(Any, pl_module))
