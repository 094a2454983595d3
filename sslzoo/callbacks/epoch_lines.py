"""EpochLines: one line per epoch, for output that is not a terminal."""

from __future__ import annotations

import time
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from sslzoo.callbacks.compare_with_start import CHANGE
from sslzoo.callbacks.evaluation import Evaluation
from sslzoo.callbacks.progress import short_names


class EpochLines(Callback):
    """Print epoch, loss, the metrics evaluated in it, samples per second and the time left.

    The throughput is that of training steps (`TrainingMonitor`); the time left also counts
    evaluations.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since, self._from = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since, self._from = time.perf_counter(), trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        epochs = trainer.max_epochs
        of = "" if epochs in (None, -1) else f"/{epochs}"
        parts = [f"epoch {trainer.current_epoch + 1}{of}", *_metrics(trainer)]
        if (left := self._left(trainer)) is not None:
            parts.append(f"{left} left")
        print("  ".join(parts), flush=True)

    def _left(self, trainer: Trainer) -> str | None:
        """Time until the run's last step; None if the run has no known length."""
        total, done = trainer.estimated_stepping_batches, trainer.global_step
        if not 0 < total < float("inf") or done <= self._from:
            return None
        seconds = (time.perf_counter() - self._since) * (total - done) / (done - self._from)
        minutes, rest = divmod(round(max(0.0, seconds)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _metrics(trainer: Trainer) -> list[str]:
    """Loss and throughput, and the metrics of the evaluations that ran in this epoch."""
    logged: dict[str, Any] = dict(trainer.callback_metrics)
    shown = [name for name in ("train/loss",) if name in logged]
    for callback in cast(Any, trainer).callbacks:
        if isinstance(callback, Evaluation) and callback._evaluated == trainer.current_epoch:
            names = callback.metric_names()
            known = [n for n in logged if n.startswith("val/")] if names is None else names
            shown += [name for name in known if name in logged and name not in shown]
    parts = [f"{short} {_value(logged, name)}" for name, short in short_names(shown).items()]
    rate = logged.get("train/samples_per_second")
    return [*parts, *([f"{float(rate):.0f} samples/s"] if rate is not None else [])]


def _value(logged: dict[str, Any], name: str) -> str:
    """A metric, with its difference to the start weights if `CompareWithStart` logs it."""
    change = logged.get(f"{name}{CHANGE}")
    return f"{float(logged[name]):.4g}" + ("" if change is None else f" ({float(change):+.3g})")
