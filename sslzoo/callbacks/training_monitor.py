"""TrainingMonitor: log learning rate, throughput and memory, and metrics in every epoch."""

from __future__ import annotations

import sys
import time
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size

from sslzoo.batch import Batch
from sslzoo.distributed import world_size

NAMES = ("train/lr", "train/samples_per_second", "train/memory_mb")


class TrainingMonitor(Callback):
    """Log `train/lr`, `train/samples_per_second` and `train/memory_mb` with the other metrics.

    The learning rate is the largest of the optimizer's groups. Samples per second are those of all
    ranks since the last logging step of the epoch, without the evaluations between epochs. Memory
    is the peak of the accelerator's allocator, or of this process on a CPU, in MB. A
    `log_every_n_steps` above the number of steps per epoch is lowered to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since, self._samples = 0.0, 0
        self._rates: list[Any] = []

    def metric_names(self) -> list[str]:
        return list(NAMES)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own: Any = trainer
        batches = trainer.num_training_batches
        if batches != float("inf"):
            steps = max(1, int(batches) // trainer.accumulate_grad_batches)
            own.log_every_n_steps = min(own.log_every_n_steps, steps)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since, self._samples = time.perf_counter(), 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the rates of this step, which a schedule changes before the step's end."""
        optimizers = trainer.optimizers
        self._rates = [group["lr"] for each in optimizers for group in each.param_groups]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += _num_samples(batch) * world_size()
        if not cast(Any, trainer)._logger_connector.should_update_logs:
            return
        now = time.perf_counter()
        values = (
            max(map(float, self._rates), default=0.0),
            self._samples / (now - self._since),
            _peak_memory(pl_module.device),
        )
        for name, value in zip(NAMES, values, strict=True):
            pl_module.log(name, value, on_step=True, on_epoch=False)
        self._since, self._samples = now, 0


def _num_samples(batch: Any) -> int:
    if isinstance(batch, Batch):
        view = batch.views[0]
        return len(view if isinstance(view, torch.Tensor) else view[0])
    try:
        return extract_batch_size(batch)
    except Exception:  # Lightning raises its own for a batch without tensors
        return 1


def _peak_memory(device: torch.device) -> float:
    """Peak of the memory in use on a device, in MB; 0 if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 2**10) / 1e6
