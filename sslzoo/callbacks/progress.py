"""ProgressBar: rich's, with the loss and the online metrics, and no device wait at each step."""

from __future__ import annotations

from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's rich bar; it reads metrics from the device on logging steps only.

    Lightning's own reads them after every batch, and on an accelerator each read waits for it.

    Args:
        leave: keep the bar of each epoch on the screen.
    """

    def __init__(self, leave: bool = False):
        super().__init__(leave=leave)
        self._shown: dict[str, Any] = {}
        self._shown_at = -1

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        now = trainer.global_step
        every: int = cast(Any, trainer).log_every_n_steps
        due = now % every == 0 or now <= 1
        if (now != self._shown_at and due) or not trainer.training:
            self._shown, self._shown_at = dict(super().get_metrics(trainer, pl_module)), now
            self._shown.pop("v_num", None)
        return self._shown
