"""ProgressBar: a rich progress bar that does not synchronize with the device at each step."""

from __future__ import annotations

from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from rich.progress import BarColumn, TimeRemainingColumn


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar, reading metrics from the device on logging steps only.

    Lightning's own bar reads them after every batch, and each read waits for the accelerator.

    Args:
        leave: keep each epoch's bar on the screen.
    """

    def __init__(self, leave: bool = False):
        super().__init__(leave=leave, theme=RichProgressBarTheme(metrics_text_delimiter="\n"))
        self._shown: dict[str, Any] = {}
        self._shown_at = -1

    def configure_columns(self, trainer: Trainer) -> list:
        """Lightning's columns, narrowed so that the metrics fit into 80 characters."""
        columns = super().configure_columns(trainer)
        for number, column in enumerate(columns):
            if isinstance(column, BarColumn):
                column.bar_width = 12
            elif type(column).__name__ == "CustomTimeColumn":  # elapsed and remaining time
                columns[number] = TimeRemainingColumn()
        return columns

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        now = trainer.global_step
        every: int = cast(Any, trainer).log_every_n_steps
        due = now % every == 0 or now <= 1
        if (now != self._shown_at and due) or not trainer.training:
            metrics = dict(super().get_metrics(trainer, pl_module))
            metrics.pop("v_num", None)
            self._shown, self._shown_at = _short(metrics), now
        return self._shown


def _short(metrics: dict[str, Any]) -> dict[str, Any]:
    return {short: metrics[name] for name, short in short_names(list(metrics)).items()}


def short_names(names: list[str]) -> dict[str, str]:
    """Names without `train/` and `val/` where they stay unique, to save width."""
    short = [name.rpartition("/")[2] for name in names]
    return {
        name: own if short.count(own) == 1 else name for name, own in zip(names, short, strict=True)
    }
