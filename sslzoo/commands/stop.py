"""Stopping and finishing: a signal saves a checkpoint; a resumed run makes up its end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from sslzoo.commands.cluster import job_number, requeue
from sslzoo.commands.hold_signals import release_signals
from sslzoo.commands.precision import AUTO, best_precision
from sslzoo.distributed import agree_on_step, barrier, keep_buckets, world_size
from sslzoo.run_folder import CHECKPOINTS, LAST, folder_of

Precision = _PRECISION_INPUT | Literal["auto"] | None


class SaveAndStop(Callback):
    """Save last.ckpt behind the current step at a signal, and exit with 128 + its number.

    The run resumes from it bit for bit. SIGTERM and SIGINT stop the run; SIGUSR1 and SIGUSR2,
    which `sbatch --signal` sends before the time is over, requeue the SLURM job too, unless
    Lightning's `SLURMEnvironment(auto_requeue=False)` is among the Trainer's plugins. Its
    `requeue_signal` is a further one.

    Where a validation or another epoch follows a step, it saves behind the validation, or behind
    the next step: Lightning resumes without the hooks that it has skipped. Outside of training, and
    at a second SIGINT, it exits at once. Lightning would save within a step at SIGUSR1, and at the
    others save nothing and exit with 0 (or 1 for SIGINT).
    """

    def __init__(self) -> None:
        self.has_started = False  # the first step of this process may begin
        self.has_trained = False  # this process has taken a step
        self._asked: signal.Signals | None = None
        self._requeues = False  # the job is to be requeued
        self._has_requeued = False
        self._trainer: Trainer | None = None
        self._defers = False
        self._is_finished = False
        self._before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle the signals while the command runs, and none of them later."""
        try:
            self._register()
            release_signals()
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _register(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in {signal.SIGTERM, signal.SIGINT, *self._job_signals()}:
                self._before.setdefault(number, signal.getsignal(number))
                signal.signal(number, self._handle)

    def _job_signals(self) -> set[signal.Signals]:
        """The signals that SLURM sends before it ends a job; none outside of a job."""
        if job_number() is None:
            return set()
        chosen = getattr(self._environment(), "requeue_signal", None)
        return {signal.SIGUSR1, signal.SIGUSR2} | ({chosen} if chosen else set())

    def _environment(self) -> Any:
        trainer = self._trainer
        return None if trainer is None else trainer._accelerator_connector.cluster_environment

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a loader's worker, whose end is the command's
            return
        asks = number in self._job_signals()
        if asks and self._is_finished:
            return
        if number == signal.SIGTERM and self._has_requeued:  # SLURM ends what it requeues
            return
        again, self._asked = self._asked, signal.Signals(number)
        if asks and not self._has_requeued:
            self._requeues = getattr(self._environment(), "auto_requeue", True)
        if self._trainer is not None and number != signal.SIGINT and again is None:
            launcher = self._trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(number)
        if not self._defers or (again == number == signal.SIGINT):
            self._exit()

    def requeue(self) -> None:
        """Requeue the job, once, if a signal asks for it."""
        asked, self._requeues = self._requeues, False
        self._has_requeued |= asked
        if asked and cast(Any, rank_zero_only).rank == 0:
            print(f"sslzoo: {requeue()}", file=sys.stderr, flush=True)

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
        self.requeue()
        if saved:
            barrier()  # srun may end the job when the first rank exits
        # Lightning kills all ranks as soon as one that it started exits with another code than 0.
        own = trainer is not None and not trainer.is_global_zero
        started = own and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)  # type: ignore[union-attr]
        raise SystemExit(0 if started else 128 + self._asked)

    # -- Lightning registers its handlers between the first two hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        self._register()

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
        loop = trainer.fit_loop.epoch_loop
        self.has_trained |= not loop._should_accumulate()
        if self._asked is None:
            return
        validates = loop._should_check_val_fx(cast(Any, trainer.fit_loop._data_fetcher))
        ends = loop._is_training_done and trainer.num_training_batches > 1
        if not validates and not ends:
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._asked is not None and self._defers:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._defers, self._is_finished = False, True
        asks, self._requeues = self._asked in self._job_signals(), False
        if self._asked is not None and not asks and world_size() == 1:
            self._exit()

    def _stop(self, trainer: Trainer) -> None:
        """Save and exit behind an optimizer step, the same one on every rank."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            agreed = agree_on_step(trainer.global_step)
            if agreed is not None and trainer.global_step >= agreed:
                self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        if not savers:
            self._requeues = False  # it would begin anew each time
            self._exit()
        folder = savers[0].dirpath or folder_of(trainer) / CHECKPOINTS
        path = savers[0].last_model_path or str(Path(folder) / LAST)
        trainer.save_checkpoint(path, weights_only=False)
        self._exit(path)


def last_saved(trainer: Trainer | None) -> str | None:
    """Path of the last checkpoint that this process saved or went on from; None without one."""
    callbacks = [] if trainer is None else trainer.checkpoint_callbacks
    savers = [c for c in callbacks if isinstance(c, ModelCheckpoint)]
    return next((s._last_checkpoint_saved for s in savers if s._last_checkpoint_saved), None)


class _NoForeignCheckpoint(_CheckpointConnector):
    """In a SLURM job, Lightning would restore the newest hpc_ckpt_N.ckpt, whichever job's it is."""

    @property
    def _hpc_resume_path(self) -> str | None:
        return None


class RunTrainer(Trainer):
    """A Trainer that resumes at the end of an epoch and of training too.

    Lightning 2.6 returns at once from a run whose steps are all taken: an evaluation at the end of
    the last epoch or of training, during which the run was killed, would never be made. And with
    `max_steps`, it resumes from the end of an epoch as if from its middle, at the wrong epoch. In a
    SLURM job, it restores no checkpoint that is not named.

    Args:
        precision: as for Lightning's; "auto": the one that this machine computes well in.
        kwargs: see `lightning.Trainer`.
    """

    def __init__(self, precision: Precision = "auto", **kwargs: Any) -> None:
        if precision == AUTO:
            precision = cast(Any, best_precision(kwargs.get("accelerator", "auto"))[0])
        super().__init__(precision=cast(Any, precision), **kwargs)
        self._checkpoint_connector = _NoForeignCheckpoint(self)

    def _run_stage(self) -> Any:
        keep_buckets(self.strategy.model)  # for modules of users too
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
