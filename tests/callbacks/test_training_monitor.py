"""TrainingMonitor and EpochLines: what a run logs and prints by default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo.callbacks import EpochLines, TrainingMonitor
from tests.callbacks.toy import FILTERS

pytestmark = FILTERS


class _Rates(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen: list[dict[str, float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.layer.weight], "lr": 0.5}, {"params": [self.layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        halved = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halved, "interval": "step"}}

    def on_train_epoch_end(self) -> None:
        self.seen.append({k: float(v) for k, v in self.trainer.callback_metrics.items()})


def run(tmp_path: Path) -> tuple[_Rates, Trainer]:
    module = _Rates()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        log_every_n_steps=100,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TrainingMonitor(), EpochLines()],
    )
    trainer.fit(module, DataLoader(torch.zeros(12, 2), batch_size=4))
    return module, trainer


def test_every_epoch_has_its_metrics_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, trainer = run(tmp_path)
    assert trainer.log_every_n_steps == 3, "steps per epoch"  # type: ignore[attr-defined]
    rates = [seen["train/lr"] for seen in module.seen]
    assert rates == pytest.approx([0.5 / 4, 0.5 / 32]), "the largest group's, of the last step"
    assert all(seen["train/samples_per_second"] > 0 for seen in module.seen)
    assert all(1 < seen["train/memory_mb"] < 1e6 for seen in module.seen)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"epoch 1/2  loss \S+  \d+ samples/s  0:0\d left", lines[0])
