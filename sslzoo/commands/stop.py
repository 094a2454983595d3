"""Stopping and finishing: SIGTERM and SIGINT save a checkpoint; a resumed run makes up its end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from sslzoo.commands.precision import AUTO, best_precision
from sslzoo.distributed import agree_on_step, world_size
from sslzoo.run_folder import CHECKPOINTS, LAST, folder_of

Precision = _PRECISION_INPUT | Literal["auto"] | None
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SaveAndStop(Callback):
    """Save last.ckpt behind the current step at SIGTERM or SIGINT, and exit with 143 or 130.

    The run resumes from it bit for bit. Outside of training, and at a second SIGINT, it exits at
    once. Lightning would go on to the end of the step too, but save nothing and exit with 0 (or 1
    for SIGINT). Where Lightning requeues a SLURM job, its own handling stays.
    """

    def __init__(self) -> None:
        self.has_started = False  # the first step of this process may begin
        self.has_trained = False  # this process has taken a step
        self._asked: signal.Signals | None = None
        self._trainer: Trainer | None = None
        self._defers = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle both signals while the command runs, and none of them later."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            self._register()
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _register(self) -> None:
        if threading.current_thread() is threading.main_thread() and not self._is_requeued():
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    def _is_requeued(self) -> bool:
        if self._trainer is None:
            return SLURMEnvironment.detect()
        environment = self._trainer._accelerator_connector.cluster_environment
        return isinstance(environment, SLURMEnvironment) and environment.auto_requeue

    def _handle(self, number: int, frame: Any) -> None:
        again, self._asked = self._asked, signal.Signals(number)
        if self._trainer is not None and number == signal.SIGTERM and again is None:
            launcher = self._trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(number)
        if not self._defers or (again == number == signal.SIGINT):
            self._exit()

    def _exit(self, saved: str | None = None) -> None:
        """Exit with the code that a shell gives to the signal; the line names the checkpoint."""
        assert self._asked is not None
        self._defers = False
        trainer = self._trainer
        if trainer is None or trainer.is_global_zero:
            last = saved or last_saved(trainer)
            what = "saved" if saved else "the last checkpoint is" if last else "no checkpoint"
            line = f"sslzoo: stopped by {self._asked.name}: {what} {last or ''}".rstrip()
            print(line, file=sys.stderr, flush=True)
        # Lightning kills all ranks as soon as one that it started exits with another code than 0.
        own = trainer is not None and not trainer.is_global_zero
        started = own and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)  # type: ignore[union-attr]
        raise SystemExit(0 if started else 128 + self._asked)

    # -- Lightning has registered its handlers when these hooks are called

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_started = self._defers = True
        self._register()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._register()

    on_sanity_check_start = on_validation_start
    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        self.has_trained = True
        if self._asked is not None and self._is_time(trainer.global_step):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._asked is not None and world_size() == 1:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._defers = False
        if self._asked is not None and world_size() == 1:
            self._exit()

    @staticmethod
    def _is_time(step: int) -> bool:
        return world_size() == 1 or agree_on_step(step) == step

    def _save(self, trainer: Trainer) -> None:
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        if not savers:
            self._exit()
        folder = savers[0].dirpath or folder_of(trainer) / CHECKPOINTS
        path = str(Path(folder) / LAST)
        trainer.save_checkpoint(path)
        self._exit(path)


def last_saved(trainer: Trainer | None) -> str | None:
    """Path of the last checkpoint that this process saved or went on from; None without one."""
    callbacks = [] if trainer is None else trainer.checkpoint_callbacks
    savers = [c for c in callbacks if isinstance(c, ModelCheckpoint)]
    return next((s._last_checkpoint_saved for s in savers if s._last_checkpoint_saved), None)


class RunTrainer(Trainer):
    """A Trainer that resumes at the end of an epoch and of training too.

    Lightning 2.6 returns at once from a run whose steps are all taken: an evaluation at the end of
    the last epoch or of training, during which the run was killed, would never be made. And with
    `max_steps`, it resumes from the end of an epoch as if from its middle, at the wrong epoch.

    Args:
        precision: as for Lightning's; "auto": the one that this machine computes well in.
        kwargs: see `lightning.Trainer`.
    """

    def __init__(self, precision: Precision = "auto", **kwargs: Any) -> None:
        if precision == AUTO:
            precision = cast(Any, best_precision(kwargs.get("accelerator", "auto"))[0])
        super().__init__(precision=cast(Any, precision), **kwargs)

    def _run_stage(self) -> Any:
        callbacks = cast(Any, self).callbacks
        callbacks.sort(key=lambda c: isinstance(c, SaveAndStop))  # it saves what all others did
        epochs = cast(Any, self.fit_loop.epoch_progress).current
        at_end = epochs.ready == epochs.started == epochs.processed
        if self.ckpt_path and at_end and self.fit_loop.epoch_loop.batch_progress.is_last_batch:
            _Loop.restarting.fset(self.fit_loop, False)  # type: ignore[attr-defined]
        result = super()._run_stage()
        stops = [c for c in callbacks if isinstance(c, SaveAndStop)]
        missed = stops and not stops[0].has_started and self.fit_loop.max_batches
        if self.state.fn == TrainerFn.FITTING and self.ckpt_path and missed:
            rank_zero_info("all steps of this run are taken: only its last evaluation is made")
            self._finish()
        return result

    def _finish(self) -> None:
        loop = self.fit_loop
        batches: Any = loop.epoch_loop.batch_progress
        epochs = cast(Any, loop.epoch_progress).current
        loop.reset()
        loop.on_run_start()
        if epochs.processed < epochs.ready:  # `max_steps` ended the run within an epoch
            if batches.current.completed < batches.current.processed:
                batches.increment_completed()
                loop.epoch_loop._batches_that_stepped += 1
            loop.on_advance_end()
        loop.on_run_end()
