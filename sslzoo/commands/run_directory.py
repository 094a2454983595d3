"""Run directory of a command: claimed by one process, continued on resume, undone on error."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, get_filesystem
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.trainer.states import TrainerFn

from sslzoo.atomic_write import atomic_write, replacing
from sslzoo.commands.cluster import JOB, JobRun
from sslzoo.commands.run_lock import locked
from sslzoo.distributed import gather_objects
from sslzoo.run_folder import CHECKPOINTS, LAST, RECORD, RunFolder, claim
from sslzoo.runs.provenance import processor, provenance
from sslzoo.trust import forget_other_files

LOG = "sslzoo_log"  # a checkpoint's key: the metrics that were logged when it was saved
_FILES = ("config.yaml", RECORD, "metrics.csv", "hparams.yaml", "events.out.tfevents*")


class MetricsFile(ExperimentWriter):
    """Writer of metrics.csv that begins with a resumed run's rows; no write leaves half a row.

    Args:
        log_dir: the run directory.
        rows: rows that the file begins with.
    """

    def __init__(self, log_dir: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        self.num_rows = 0
        if rows or self._path.exists():
            self._write(rows)

    def _check_log_dir_exists(self) -> None:
        """Keep the files of a run that is resumed; Lightning would remove its metrics."""

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        self.num_rows += 1

    def save(self) -> None:
        if not self.metrics:
            return
        if not self._path.exists() or set().union(*self.metrics) - {*self.metrics_keys}:
            self._write([*read_rows(self._path), *self.metrics])
        else:
            size = self._path.stat().st_size
            try:
                with self._path.open("a", newline="") as file:
                    csv.DictWriter(file, self.metrics_keys).writerows(self.metrics)
            except OSError:
                with self._path.open("r+") as file:
                    file.truncate(size)
                raise
        self.metrics = []

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the whole file, with a column for each name."""
        names = sorted({name for row in rows for name in row})
        with replacing(self._path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        self.metrics_keys, self.num_rows = names, len(rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSVLogger's file; none without a file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k is not None} for row in csv.DictReader(file)]


def rows_of(run: RunFolder, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics that a run had logged when it saved a checkpoint, in memory or in its file."""
    rows, log = read_rows(run.metrics_file), saved.get(LOG)
    if not isinstance(log, Mapping) or not isinstance(log.get("num_rows"), int):  # version 0.1
        last = saved.get("global_step", 0)
        return [row for row in rows if not row.get("step") or float(row["step"]) < last]
    rows = rows[: log["num_rows"]]
    pending = log.get("pending")
    return [*rows, dict(pending)] if pending and isinstance(pending, Mapping) else rows


class KeepMetrics(Callback):
    """Write the metrics logged before a checkpoint to disk, and the pending ones into it.

    `ModelCheckpoint` saves before Lightning writes the metrics of the step or the epoch.
    """

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        pending = _pending(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and isinstance(logger.experiment, MetricsFile):
                logger.save()
                checkpoint[LOG] = {"num_rows": logger.experiment.num_rows, "pending": pending}
                return


def _pending(trainer: Trainer) -> dict[str, Any]:
    """The row that Lightning will log after the running hook."""
    if not trainer.training or trainer.interrupted:
        return {}
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    at_epoch_end = connector._first_loop_iter is None
    if not at_epoch_end and (loop._should_accumulate() or not connector.should_update_logs):
        return {}
    values = convert_tensors_to_scalars(connector.metrics["log"])
    if not values:
        return {}
    step = loop._batches_that_stepped - int(at_epoch_end)
    return {"epoch": trainer.current_epoch, "step": step, **values}


class RunDirectory:
    """The directory of one command: claims it, or goes on in a resumed run's, and can undo that.

    Args:
        trainer: its loggers, and without any its root directory, are set to the directory.
        resumed: the run that is resumed.
        saved: contents of the checkpoint that it is resumed from.
        locks: those of the command, which has that of the resumed run or of the evaluation; a
            claimed one's is added.
        evaluation: RUN/<verb>, where the loggers write the evaluation of a run; None: not there.
    """

    def __init__(
        self,
        trainer: Any,
        resumed: RunFolder | None,
        saved: Mapping[str, Any],
        locks: contextlib.ExitStack,
        evaluation: RunFolder | None = None,
    ) -> None:
        self._locks = locks
        self.claimed: list[RunFolder] = []
        self.continued: RunFolder | None = None
        self._before: dict[Path, bytes] = {}
        self._root = _first_missing(Path(trainer.default_root_dir))
        if cast(Any, rank_zero_only).rank == 0 and not trainer.fast_dev_run:
            try:
                if evaluation is not None:
                    self._evaluate(trainer, evaluation)
                self._set_up(trainer, resumed, saved)
            except BaseException:
                self.undo()
                raise

    def _evaluate(self, trainer: Any, folder: RunFolder) -> None:
        """Replace the files of an earlier evaluation."""
        self._before = {path: path.read_bytes() for path in _files(folder)}
        self.continued = folder
        if not trainer.loggers:
            trainer._default_root_dir = str(folder.path)
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and logger._version == folder.path.name:
                logger._experiment = MetricsFile(logger.log_dir)

    def _set_up(self, trainer: Any, resumed: RunFolder | None, saved: Mapping[str, Any]) -> None:
        folders: dict[Path, RunFolder] = {}
        if resumed is not None:
            folders[resumed.path.parent.resolve()] = resumed
        if not trainer.loggers and self.continued is None:
            trainer._default_root_dir = str(
                self._enter(Path(trainer.default_root_dir), folders).path
            )
        for logger in _without_version(trainer):
            run = self._enter(Path(logger.root_dir), folders)
            logger._version = run.number
            if isinstance(logger, CSVLogger):
                rows = rows_of(run, saved) if run is resumed else []
                logger._experiment = MetricsFile(logger.log_dir, rows)

    def _enter(self, root: Path, folders: dict[Path, RunFolder]) -> RunFolder:
        whole = root.resolve()
        if whole not in folders:
            folders[whole] = claim(root)
            self.claimed.append(folders[whole])
            self._locks.enter_context(locked(folders[whole]))
        elif folders[whole] not in self.claimed and self.continued is None:
            self.continued = folders[whole]
            self._before = {path: path.read_bytes() for path in _files(folders[whole])}
        return folders[whole]

    def undo(self) -> None:
        """Remove the files of a run that took no step, and restore those of a resumed one."""
        with contextlib.suppress(OSError):  # a full disk is the error to report
            self._undo()

    def _undo(self) -> None:
        entered = [*self.claimed, *([self.continued] if self.continued else [])]
        for run in entered:
            for path in _files(run):
                if path not in self._before:
                    path.unlink()
        for path, content in self._before.items():
            if not path.exists() or path.read_bytes() != content:
                atomic_write(path, content)
        self._locks.close()
        for run in entered:
            with contextlib.suppress(OSError):  # it holds what is not ours
                (run.path / CHECKPOINTS).rmdir()
            with contextlib.suppress(OSError):
                run.path.rmdir()
        if self._root is not None:
            for folder in [*(run.path.parent for run in self.claimed)]:
                _remove_empty(folder, self._root)


def goes_on_in(trainer: Any, run: RunFolder) -> bool:
    """Whether a command that resumes a run writes to the run's own directory."""
    roots = [trainer.default_root_dir] if not trainer.loggers else []
    roots += [logger.root_dir for logger in _without_version(trainer)]
    return run.path.parent.resolve() in [Path(root).resolve() for root in roots]


def _without_version(trainer: Any) -> list[Any]:
    """The trainer's loggers that write to a run directory, which they are to be told."""
    return [
        logger
        for logger in trainer.loggers
        if isinstance(logger, CSVLogger | TensorBoardLogger)
        and logger._version is None
        and _is_local_file_protocol(logger.root_dir)
    ]


def _files(run: RunFolder) -> list[Path]:
    """The files that a command writes before its first step."""
    return [path for name in _FILES for path in run.path.glob(name)]


def _first_missing(path: Path) -> Path | None:
    """The topmost folder of a path that does not exist yet."""
    missing = [part for part in (path, *path.parents) if not part.exists()]
    return missing[-1] if missing else None


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove empty folders from one up to another."""
    for part in (folder, *folder.parents):
        try:
            part.rmdir()
        except OSError:
            return
        if part == top:
            return


class SaveRun(SaveConfigCallback):
    """Write config.yaml, and `run.json`: provenance, and the training time of an unbroken run.

    In a resumed run's directory, both stay as they are until a batch is drawn. In a SLURM job, it
    also names the folders of the checkpoints for the requeued job.
    """

    command: str | None = None
    job: JobRun | None = None
    start: dict[str, Any] | None = None  # what `--start_from` loaded
    _started: float | None = None
    _is_due = False  # the run's files are to be written at the first batch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = trainer.log_dir  # collective, and `save_config` is called on rank 0 only
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic() if trainer.global_step == 0 else None
        if self.job is not None and trainer.is_global_zero:
            savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
            self.job.add(saver.dirpath for saver in savers)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._is_due:
            self._is_due = False
            self._write(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.job is not None:
            checkpoint[JOB] = self.job.name

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._started is None or self.folder is None or not trainer.is_global_zero:
            return
        path = Path(self.folder) / RECORD
        if not path.is_file():  # on another file system
            return
        about = {**json.loads(path.read_text()), "seconds": time.monotonic() - self._started}
        atomic_write(path, json.dumps(about, indent=1) + "\n")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert self.folder is not None
        self._is_due = stage == "fit" and (Path(self.folder) / "config.yaml").exists()
        if not self._is_due:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        about = {
            "command": self.command,
            "accelerator": trainer.accelerator.name(),
            "processor": _processor(trainer),
            "ranks": trainer.world_size,
            **({} if self.start is None else {"start": self.start}),
            **provenance(),
        }
        config = self.config.clone()
        config["ckpt_path"] = None  # that of this command, not of those that name its config.yaml
        text = self.parser.dump(config, skip_none=False, skip_validation=True)
        for name, content in (("config.yaml", text), (RECORD, json.dumps(about, indent=1) + "\n")):
            path = f"{self.folder}/{name}"
            if _is_local_file_protocol(path):
                atomic_write(Path(path), content)
            else:
                with get_filesystem(path).open(path, "w") as file:
                    file.write(content)


def _processor(trainer: Trainer) -> str:
    """Name of the device that trains."""
    if isinstance(trainer.accelerator, CUDAAccelerator):
        return torch.cuda.get_device_name(trainer.strategy.root_device)
    return processor()


class Resumed(Callback):
    """Let a resumed run write and remove its own checkpoints alone.

    Attributes:
        checkpoint: that of the resumed run; in its own folder, the run goes on writing last.ckpt.
        step: the steps of the checkpoint that this rank has read; None: it read none.
        error: why this rank could not read it.
        refusal: why rank 0 may not write to the run.
    """

    checkpoint: Path | None = None
    step: int | None = None
    error: str | None = None
    refusal: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse ranks that would begin at different steps, such as with disks of their own.

        Raises:
            ValueError: on every rank, instead of a hang of some.
        """
        if refusal := gather_objects(self.refusal)[0]:
            raise ValueError(refusal)
        read = gather_objects((self.step, self.error))
        if self.error is None and len(set(read)) == 1:
            return
        texts = [error or ("no file" if step is None else f"step {step}") for step, error in read]
        parts = [f"{text} on rank {r}" for r, text in enumerate(texts) if text not in texts[:r]]
        raise ValueError(
            "--ckpt_path must be the same checkpoint on every node, such as on a shared file "
            f"system, got {', '.join(parts)}"
        )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Name the run's files as this command does, which may have been given another path."""
        for saver in self._of_this_run(trainer):
            state = checkpoint["callbacks"].get(saver.state_key)
            was, now = (state or {}).get("dirpath"), saver.dirpath
            if isinstance(was, str):
                checkpoint["callbacks"][saver.state_key] = _renamed(state, f"{was}", f"{now}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        forget_other_files(trainer)
        lasts = {saver.last_model_path for saver in self._of_this_run(trainer)}
        for saver in self._of_this_run(trainer):
            last = f"{saver.dirpath}/{LAST}"
            if saver.save_last and not saver.last_model_path and last not in lasts:
                saver.last_model_path = last
                lasts.add(last)
            saver._last_checkpoint_saved = saver.last_model_path

    def _of_this_run(self, trainer: Trainer) -> list[ModelCheckpoint]:
        """The callbacks that write to the folder of the resumed checkpoint."""
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        return [
            saver
            for saver in savers
            if self.checkpoint and Path(saver.dirpath or "").resolve() == self.checkpoint.parent
        ]


def _renamed(value: Any, was: str, now: str) -> Any:
    """Replace a folder at the beginning of every path in the state of a callback."""
    if isinstance(value, Mapping):
        return {_renamed(k, was, now): _renamed(v, was, now) for k, v in value.items()}
    if isinstance(value, str) and (value == was or value.startswith(f"{was}/")):
        return now + value.removeprefix(was)
    return value
