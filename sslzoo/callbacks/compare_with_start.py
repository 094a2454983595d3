"""CompareWithStart: evaluate the start weights before the first step, and compare with them.

Row 0 is what every `Evaluation` of the trainer gives for the weights that the run starts from. It
is logged at step 0, kept in checkpoints, and every later value is logged with its difference to it.
"""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.callbacks.evaluation import Evaluation, log_metric
from sslzoo.callbacks.progress import short_names
from sslzoo.checks import check_interval

CHANGE = "_change"  # suffix of a metric's difference to row 0
RANK = "val/effective_rank"


class WorseThanStartWarning(UserWarning):
    """Warning that the run is worse than the weights that it started from."""


class CompareWithStart(Callback):
    """Log the metrics of the start weights at step 0, and `<metric>_change` with each later value.

    It calls `evaluate` of every `Evaluation` of the trainer before the first step, once per run;
    a resumed run keeps the values. `OnlineProbe` has none, since it learns during the run; use
    `OnlineLinear`. Once per run, on rank 0, it warns (`WorseThanStartWarning`) if a metric of
    labels has fallen below row 0 by more than the tolerance, or the effective rank below a fraction
    of row 0. That rank shows a collapse; a higher one does not show better features.

    Args:
        tolerance: fall of a metric of labels, a fraction of 1, that is within chance.
        least_rank_fraction: minimum effective rank as a fraction of row 0.

    Attributes:
        start: row 0, value by metric; empty before the first step.
        best: highest value since, with its epoch from 1, by metric.
    """

    def __init__(self, tolerance: float = 0.02, least_rank_fraction: float = 0.5) -> None:
        super().__init__()
        check_interval("tolerance", tolerance, 0, 1)
        check_interval("least_rank_fraction", least_rank_fraction, 0, 1)
        self.tolerance, self.least_rank_fraction = tolerance, least_rank_fraction
        self._reset()

    def _reset(self) -> None:
        self.start: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.best: dict[str, tuple[float, int]] = {}
        self._labeled: list[str] = []  # names of the metrics that read labels
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # a second fit starts anew; the state of a resumed run is loaded later
            self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = [c for c in cast(Any, trainer).callbacks if isinstance(c, Evaluation)]
        if not found:
            raise ValueError(
                "the trainer must have an evaluation, such as OnlineSpectrum or OnlineKNN, for "
                "CompareWithStart, got none"
            )
        if self.start or trainer.global_step > 0:
            return
        for evaluation in found:
            if not evaluation.has_start or evaluation.skips(trainer):
                continue
            values = evaluation.evaluate(trainer, pl_module)
            self.start |= values
            self._labeled += values if evaluation.reads_labels else []
        for logger in trainer.loggers:
            logger.log_metrics({**self.start, "epoch": 0}, step=0)
            if isinstance(logger, CSVLogger):
                logger.save()
        if trainer.is_global_zero:
            print("start weights  " + "  ".join(_shown(self.start)), flush=True)

    def metric_names(self) -> list[str]:
        return [f"{name}{CHANGE}" for name in self.start]

    def on_evaluated(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        evaluation: Evaluation,
        values: dict[str, float],
    ) -> None:
        """Log the differences to row 0; `Evaluation` calls it after it has logged its values."""
        for name in values.keys() & self.start.keys():
            log_metric(pl_module, f"{name}{CHANGE}", values[name] - self.start[name])
        if not trainer.training:
            return
        known = {name: value for name, value in values.items() if name in self.start}
        self.last |= known
        for name, value in known.items():
            if name not in self.best or value > self.best[name][0]:
                self.best[name] = (value, trainer.current_epoch + 1)
        self._warn_if_worse(known)

    def _warn_if_worse(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            least = self.start[name] - self.tolerance if name in self._labeled else None
            if name == RANK:
                least = self.start[name] * self.least_rank_fraction
            if least is None or value >= least or self._warned:
                continue
            self._warned = True
            rank_zero_warn(
                f"the run has become worse than its start: {name} is {value:.4g} and was "
                f"{self.start[name]:.4g} with the start weights; stop, and continue with a lower "
                "rate, a longer warm-up of the heads (FreezeUntil) or more frozen layers (Freeze)",
                category=WorseThanStartWarning,
            )

    def summary(self) -> list[str]:
        """Row 0, the best and the last value of each metric, and whether any epoch beat row 0."""
        lines = []
        for name, start in self.start.items():
            if name in self.best:
                (best, epoch), last = self.best[name], self.last[name]
                lines.append(
                    f"{name}: start weights {start:.4g}, best {best:.4g} ({best - start:+.4g}, "
                    f"epoch {epoch}), last {last:.4g} ({last - start:+.4g})"
                )
        judged = [name for name in self._labeled if name in self.best]
        if judged and not any(self.best[name][0] > self.start[name] for name in judged):
            lines.append(
                f"no epoch beats the start weights in {', '.join(judged)}: the start weights are "
                "the better encoder"
            )
        if lines and not judged:
            lines.append(
                "no metric reads labels: the effective rank shows a collapse, and not which "
                "encoder is better"
            )
        return lines

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "last": self.last,
            "best": {name: list(pair) for name, pair in self.best.items()},
            "labeled": self._labeled,
            "warned": self._warned,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start, self.last = dict(state_dict["start"]), dict(state_dict["last"])
        self.best = {name: (value, epoch) for name, (value, epoch) in state_dict["best"].items()}
        self._labeled, self._warned = list(state_dict["labeled"]), state_dict["warned"]


def start_of(trainer: Trainer) -> CompareWithStart | None:
    """The trainer's CompareWithStart with its row 0, if there is one."""
    for callback in cast(Any, trainer).callbacks:
        if isinstance(callback, CompareWithStart) and callback.start:
            return callback
    return None


def _shown(values: dict[str, float]) -> list[str]:
    return [f"{short} {values[name]:.4g}" for name, short in short_names(list(values)).items()]
