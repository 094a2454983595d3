"""ClusterEpochs: cluster the embeddings of the previous epoch at the start of each epoch.

Before the first epoch the memory is filled by a pass over the training data, with random views and
batch norm in training mode, without gradient, as in the code of DeepCluster-v2.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Protocol, cast

import torch
from lightning import Callback, LightningModule, Trainer

from sslzoo.batch import Batch, as_batch
from sslzoo.callbacks.rehearsal import require
from sslzoo.memory import ClusterMemory
from sslzoo.sharding import whole


class Clustered(Protocol):
    """Protocol of the methods that `ClusterEpochs` accepts."""

    clusters: ClusterMemory
    seed: int
    step: int

    def remember(self, batch: Batch) -> None:
        """Stage the batch's embeddings in `clusters`."""


class ClusterEpochs(Callback):
    """Run k-means over the memory at the start of each epoch: new centroids and assignments.

    A run that resumes inside an epoch continues with the assignments in its checkpoint.

    Args:
        iterations: k-means iterations; 10 in the reference code.
    """

    def __init__(self, iterations: int = 10):
        self.iterations = iterations
        self._epoch = -1  # epoch of the current clusters

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "ClusterEpochs", "clusters", "remember", "step", "seed")
        method = cast(Clustered, pl_module)
        self._epoch = int(method.clusters.epoch) if method.step else -1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch < 0:
            self.fill(trainer, pl_module)
        self._cluster(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning 2.6.6 resumes from an epoch's last batch without calling the next's hook.
        self._cluster(trainer, pl_module)

    def _cluster(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch != trainer.current_epoch:
            self._epoch, method = trainer.current_epoch, cast(Clustered, pl_module)
            method.clusters.cluster(self._epoch, method.seed, self.iterations)

    @torch.no_grad()
    def fill(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the memory with the embeddings of one epoch's batches, without training."""
        method = cast(Clustered, pl_module)
        loader: Any = trainer.train_dataloader
        count = trainer.num_training_batches  # infinite for a loader without a length
        with whole(pl_module):
            for raw in islice(loader, count if isinstance(count, int) else None):
                batch = trainer.precision_plugin.convert_input(raw)
                batch = pl_module._on_before_batch_transfer(batch)
                batch = trainer.strategy.batch_to_device(batch)
                with trainer.precision_plugin.train_step_context():
                    method.remember(as_batch(batch))
                method.clusters.commit()
