"""CommitMemory: write staged rows into memory banks and queues after each step.

The rows of all accumulated micro-batches are written together, in (micro-batch, rank) order, so
that a step never sees its own rows and every rank holds the same memory. Optionally, it recomputes
a bank from the whole training set every n epochs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from sslzoo.callbacks.rehearsal import require
from sslzoo.distributed import broadcast_
from sslzoo.eval.features import extract
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.memory import ClusterMemory, MemoryBank, commit_memories, memories


class CommitMemory(Callback):
    """Commit the staged rows once per optimizer step.

    Args:
        refresh_every_n_epochs: recompute every bank row from the training set, without
            augmentation and in eval mode, at the end of each n-th epoch; 0: never. It calls the
            method's `embed(view)`, (B, ...) -> (B, D).
    """

    def __init__(self, refresh_every_n_epochs: int = 0):
        if refresh_every_n_epochs < 0:
            raise ValueError(
                f"refresh_every_n_epochs must be at least 0, got {refresh_every_n_epochs}"
            )
        self.refresh_every_n_epochs = refresh_every_n_epochs
        self._committed = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "CommitMemory", "step")
        self._committed = cast(Any, pl_module).step
        if self.refresh_every_n_epochs:
            self._check_refresh(trainer, pl_module)
        samples = getattr(getattr(trainer, "datamodule", None), "num_samples", None)
        for memory in memories(pl_module):
            slots = getattr(pl_module, "bank_size", samples)
            if isinstance(memory, MemoryBank | ClusterMemory):
                slots = len(memory.rows)
            if samples not in (None, slots):
                raise ValueError(
                    f"bank_size must be {samples}, the size of the training set, got {slots}"
                )
            for buffer in memory.buffers():
                broadcast_(buffer)  # DDP does not: all ranks need the same initial rows

    def _check_refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "CommitMemory(refresh_every_n_epochs)", "embed")
        if not any(isinstance(memory, MemoryBank) for memory in memories(pl_module)):
            raise ValueError(
                "the module must have a MemoryBank for CommitMemory(refresh_every_n_epochs), got "
                f"{type(pl_module).__name__} without one"
            )
        if not hasattr(getattr(trainer, "datamodule", None), "eval_dataloaders"):
            raise ValueError(
                "the data module must have eval_dataloaders() for "
                "CommitMemory(refresh_every_n_epochs), got none; set refresh_every_n_epochs: 0"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = cast(Any, pl_module).step
        if step > self._committed:
            self._committed = step
            commit_memories(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        every = self.refresh_every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0:
            refresh(pl_module, cast(Any, trainer).datamodule.eval_dataloaders())


@torch.no_grad()
def refresh(method: LightningModule, loaders: EvalLoaders) -> None:
    """Overwrite every bank row with the embedding of its sample, without augmentation."""
    embedded = extract(method, loaders.bank, loaders, features="embed")
    for memory in memories(method):
        if isinstance(memory, MemoryBank):
            memory.overwrite(embedded.index, embedded.features)
