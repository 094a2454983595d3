"""Watch: log values that tell whether a method learns, and warn when one is too small."""

from __future__ import annotations

from typing import Any, Protocol, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslzoo.callbacks.online_spectrum import CollapseWarning
from sslzoo.callbacks.rehearsal import require


class Watched(Protocol):
    """Protocol of the methods that `Watch` accepts.

    Attributes:
        watched: values of the last batch, the same on every rank, by name.
        step: optimizer steps taken so far.
    """

    watched: dict[str, Tensor]
    step: int


class Watch(Callback):
    """Log the method's `watched` values, and warn once per run if one falls below its minimum.

    The values are compared at the end of an epoch, with `CollapseWarning`.

    Args:
        least: smallest value by name.
        advice: what to do about it.
        after_steps: optimizer steps before the first comparison.
    """

    def __init__(self, least: dict[str, float], advice: str, after_steps: int = 0) -> None:
        self.least, self.advice, self.after_steps = least, advice, after_steps
        self._warned = False

    def metric_names(self) -> list[str]:
        return [f"train/{name}" for name in self.least]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "Watch", "watched", "step")
        self._warned = False
        rate = getattr(getattr(trainer, "datamodule", None), "rate", None)
        wanted = getattr(getattr(pl_module, "backbone", None), "rate", None)
        if None not in (rate, wanted) and rate != wanted:
            raise ValueError(
                f"rate of the data must be the net's {wanted} Hz, got {rate} Hz; set data.rate, to "
                "which files are resampled, or rate of the backbone"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if cast(Any, trainer)._logger_connector.should_update_logs:
            for name, value in cast(Watched, pl_module).watched.items():
                pl_module.log(f"train/{name}", value, on_step=True, on_epoch=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        method = cast(Watched, pl_module)
        if self._warned or method.step < self.after_steps:
            return
        for name, least in self.least.items():
            if name not in method.watched:  # resumed behind the last batch of an epoch
                continue
            value = float(method.watched[name])
            if value < least:
                self._warned = True
                message = f"{name} must be at least {least:g}, got {value:.3g}; {self.advice}"
                rank_zero_warn(message, category=CollapseWarning)
                return
