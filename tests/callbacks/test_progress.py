"""ProgressBar: what fits a terminal of 80 characters, read on logging steps only."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo.callbacks import ProgressBar
from sslzoo.callbacks.progress import _short
from tests.callbacks.toy import FILTERS

pytestmark = FILTERS


class _Logs(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("val/knn_top1_k20_t0.07", 0.5, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_names_lose_their_stage_where_they_stay_apart() -> None:
    assert _short({"train/loss": 1, "val/knn": 2}) == {"loss": 1, "knn": 2}
    both = {"train/loss": 1, "val/loss": 2, "val/knn": 3}
    assert _short(both) == {"train/loss": 1, "val/loss": 2, "knn": 3}


def test_a_bar_fits_eighty_characters_and_reads_on_logging_steps_only() -> None:
    consoles: list[Console] = []

    def console(**_: Any) -> Console:
        consoles.append(Console(record=True, width=80, force_terminal=True, quiet=False))
        return consoles[-1]

    reads = 0
    plain = RichProgressBar.get_metrics

    def counted(self: RichProgressBar, *args: Any) -> dict[str, Any]:
        nonlocal reads
        reads += 1
        return plain(self, *args)

    with (
        mock.patch("lightning.pytorch.callbacks.progress.rich_progress.get_console", console),
        mock.patch("rich.reconfigure"),
        mock.patch.object(RichProgressBar, "get_metrics", counted),
    ):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            log_every_n_steps=10,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[ProgressBar()],
        )
        trainer.fit(_Logs(), DataLoader(torch.zeros(40, 2)))
    text = consoles[-1].export_text()
    assert "knn_top1_k20_t0.07: 0.500" in text
    assert "loss: " in text
    assert reads <= 4 + 4, f"40 steps, 4 of them logging ones, read {reads} times"
