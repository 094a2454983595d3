"""Temporary: changes of a module that last as long as a run, however it ends."""

from __future__ import annotations

from typing import cast

from lightning import Callback, LightningModule, Trainer


class Temporary(Callback):
    """A callback whose `teardown` undoes what it changed, also after a run that failed.

    Lightning calls no `teardown` then, and a notebook may go on with the same module.
    """

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, cast(str, trainer.state.fn))  # it is equal to "fit"
