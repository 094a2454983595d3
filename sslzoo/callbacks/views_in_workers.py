"""ViewsInWorkers: the loader's workers make the training views, not the device."""

from __future__ import annotations

from typing import Any, final

from lightning import LightningModule, Trainer

from sslzoo.callbacks.temporary import Temporary


@final
class ViewsInWorkers(Temporary):
    """Make the training views in the loader's workers.

    By default the views are made on the device, where a GPU is fastest. With this callback each
    worker makes all views of its batches on one core, and the device only trains: for a GPU without
    time to spare beside many cores, and for a CPU. The views are the same, on a CPU bit for bit. A
    batch then crosses from worker to device as float32 views, four times the bytes of uint8 crops,
    and lies in shared memory (/dev/shm), up to three batches per worker.

    Evaluation is not affected. Data modules that load without workers get one worker per core, at
    most 8, if their `num_workers` is None.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the data module, before it makes its loaders.

        Raises:
            ValueError: the data module is not one of sslzoo's.
        """
        if stage != "fit":
            return
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "views_in_workers"):
            raise ValueError(
                "the data of a run with ViewsInWorkers must be a data module of sslzoo, such as "
                f"with_views(datamodule, transform), got {type(data).__name__}"
            )
        data.views_in_workers = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the data module as it was, for a trainer without this callback."""
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and hasattr(data, "views_in_workers"):
            data.views_in_workers = False
