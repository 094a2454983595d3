"""Training command: LightningCLI with config names, a run directory and a progress bar.

    sslzoo fit --config simclr/cifar10_resnet18_200ep
    sslzoo fit --config dino/folder_small_10ep --start_from NAME|FILE|ADDRESS|RUN
    sslzoo validate | test | predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt

Modules and data modules are named by class path; nothing is looked up in a registry.
"""

from __future__ import annotations

import importlib.util
import logging
import pickle
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from sslzoo.atomic_write import recover
from sslzoo.callbacks.epoch_lines import EpochLines
from sslzoo.callbacks.feature_writer import FeatureWriter
from sslzoo.callbacks.progress import ProgressBar
from sslzoo.callbacks.training_monitor import TrainingMonitor
from sslzoo.commands import checkpoints
from sslzoo.commands.agreement import RanksAgree
from sslzoo.commands.arguments import VERBS, runs_of, with_config_paths
from sslzoo.commands.checkpoints import CheckpointFiles
from sslzoo.commands.cluster import (
    JobRun,
    check_processes,
    determining,
    is_one_of_many,
    job_number,
    own_environment,
)
from sslzoo.commands.errors import line, refuse
from sslzoo.commands.help_text import (
    CKPT_PATH,
    DESCRIPTIONS,
    WEIGHTS_ONLY,
    HelpFormatter,
    listed_classes,
)
from sslzoo.commands.loadable import refuse_config, refuse_hyperparameters
from sslzoo.commands.precision import AUTO, best_precision, has_amx
from sslzoo.commands.run_directory import (
    KeepMetrics,
    Resumed,
    RunDirectory,
    SaveRun,
    goes_on_in,
)
from sslzoo.commands.run_lock import locked, wait_for_earlier_start
from sslzoo.commands.stop import RunTrainer, SaveAndStop, last_saved
from sslzoo.commands.summary import summary
from sslzoo.distributed import is_lost_rank
from sslzoo.run_folder import RunFolder, folder_of, is_version, run_of
from sslzoo.runs.allocation import keep_freed_memory
from sslzoo.runs.start import start_from
from sslzoo.sharding import FullyShard
from sslzoo.trust import assemble, is_folder_of_shards


class FitParser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are one sentence without the usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # jsonargparse makes the parser of a class without these.
        given = {"prog": f"sslzoo {SSLZooCLI.verb}", "formatter_class": HelpFormatter, **kwargs}
        super().__init__(*args, **given)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the inner parser of a class
            super().error(message, ex)
        verb = SSLZooCLI.verb if SSLZooCLI.verb in VERBS else None
        options = [name for parser in _parsers(self) for name in parser._option_string_actions]
        refuse("sslzoo" if verb is None else f"sslzoo {verb}", message, options)


def _parsers(parser: Any) -> list[Any]:
    """A parser and its subcommands'."""
    inner = getattr(parser, "_subcommands_action", None)
    return [parser, *(inner._name_parser_map.values() if inner is not None else ())]


class SSLZooCLI(LightningCLI):
    """LightningCLI in subclass mode for both module and data module."""

    config_path: str | None = None
    verb: str | None = None
    typed: tuple[str, ...] = ()  # the arguments of the command line
    stop: SaveAndStop
    locks: ExitStack
    saved = False  # whether a checkpoint was read
    has_root = False  # whether the command line has --trainer.default_root_dir

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Give the verb in use alone: each takes a tenth of the start-up to build."""
        every = LightningCLI.subcommands()
        return {self.verb: every[self.verb]} if self.verb in every else every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--start_from",
            type=str | None,
            default=None,
            help="weights of a new run: a run directory, a name in the zoo, a file or an address",
        )
        parser.add_argument(
            "--start_heads",
            type=Literal["new", "given"],
            default="new",
            help="whether heads begin anew, or are those of --start_from, a run of this method",
        )

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Explain two arguments as they are here, where Lightning's docstring says otherwise."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = f"sslzoo {subcommand} --config NAME [options]"  # not a list of all of them
        for action in parser._actions:
            here = {"ckpt_path": CKPT_PATH, "weights_only": WEIGHTS_ONLY}
            action.help = here.get(action.dest, action.help)
        return parser

    def _go_on_after_requeue(self) -> None:
        """Let a requeued SLURM job resume from its last checkpoint, and no other job from it."""
        SaveRun.job = None
        if self.subcommand != "fit" or job_number() is None:
            return
        config = yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_none=False))
        root = self._get(self.config, "trainer").default_root_dir or self._root()
        run = SaveRun.job = JobRun(Path(root), config)
        for folder in map(Path, run.folders or []):
            wait_for_earlier_start(folder.parent)
        checkpoint = run.checkpoint(self._get(self.config, "weights_only") is not False)
        if checkpoint is not None:
            rank_zero_info(f"SLURM job {job_number()} was requeued and goes on from {checkpoint}")
            self.config["fit"]["ckpt_path"] = str(checkpoint)
            self.typed = ()  # a --start_from was for its first start
        elif not config["ckpt_path"] and (others := run.others()):
            rank_zero_info(
                f"this run begins anew, and not from {', '.join(map(str, others))}: another job's "
                "or another config's; --ckpt_path goes on from a checkpoint"
            )

    def before_instantiate_classes(self) -> None:
        self._go_on_after_requeue()
        self._choose_precision(self._get(self.config, "trainer"))
        if self.subcommand == "fit":
            # Lightning would make it, and check the config, once more.
            self.config_dump = refuse_config(self._parser("fit"), self.config["fit"])

    def after_instantiate_classes(self) -> None:
        if self.subcommand == "fit":
            refuse_hyperparameters(self.model, "model")
            refuse_hyperparameters(self.datamodule, "data")
        self._start()

    def _start(self) -> None:
        """Fill the model with the weights of `--start_from`, unless a checkpoint has its own."""
        source = self._get(self.config, "start_from")
        SaveRun.start = None
        if source is None:
            return
        if self._get(self.config, "ckpt_path"):
            if any(arg.partition("=")[0] == "--start_from" for arg in self.typed):
                raise ValueError(
                    "--start_from begins a new run and --ckpt_path goes on with one: one of them "
                    "must be omitted, got both"
                )
            return
        SaveRun.start = start_from(self.model, source, self._get(self.config, "start_heads"))
        rank_zero_info(f"start weights: {SaveRun.start['loaded']}")

    def _choose_precision(self, trainer: Any) -> None:
        """Replace `auto`, so that config.yaml has the precision of the run."""
        if trainer.precision == AUTO:
            trainer.precision, why = best_precision(trainer.accelerator)
            rank_zero_info(
                f"precision: {trainer.precision}, since {why}; --trainer.precision overrides it"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer", default={})
        self.resumed = Resumed()
        self.beside = self._evaluated_run()
        root = str(config.get("default_root_dir") or self._root())
        if self.beside is not None:
            root = str(self.beside.path)
        kwargs["default_root_dir"] = root
        if config.get("logger") in (None, True):
            kwargs["logger"] = _default_loggers(root, self.subcommand if self.beside else None)
        callbacks = _as_list(config.get("callbacks"))

        def lacks(kind: type) -> bool:
            return not any(isinstance(callback, kind) for callback in callbacks)

        if config.get("enable_progress_bar") is not False and lacks(AnyProgressBar):
            if sys.stdout.isatty():
                callbacks.append(ProgressBar())
            else:
                callbacks.append(EpochLines())
                kwargs["enable_progress_bar"] = False
        if config.get("logger") is not False and lacks(TrainingMonitor):
            callbacks.append(TrainingMonitor())
        if config.get("enable_checkpointing") is not False and lacks(ModelCheckpoint):
            callbacks.append(ModelCheckpoint(save_last=True))
        if self.subcommand == "predict" and lacks(FeatureWriter):
            callbacks.append(FeatureWriter())
        plugins = _as_list(config.get("plugins"))
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            plugins.append(CheckpointFiles())
        kwargs["plugins"] = [*plugins, *own_environment(plugins)]
        if self.subcommand == "fit":
            callbacks.insert(0, RanksAgree(determining(self.config_dump)))
        kwargs["callbacks"] = [*callbacks, self.resumed, KeepMetrics(), self.stop]
        trainer = super().instantiate_trainer(**kwargs)
        check_processes(trainer)
        _prepare_cpu(trainer)
        return trainer

    def _resumed(self) -> str | None:
        """Path of the checkpoint that `fit` resumes from; None: it starts anew, or unknown yet."""
        given = self._get(self.config, "ckpt_path")
        return given if self.subcommand == "fit" and given and checkpoints.is_local(given) else None

    def _root(self) -> str:
        """The folder of the resumed run, or runs/ and the config's name."""
        resumed = self._resumed()
        run = None if resumed is None else run_of(Path(resumed))
        return runs_of(self.config_path) if run is None else str(run.path.parent)

    def _evaluated_run(self) -> RunFolder | None:
        """The run that `validate`, `test` or `predict` evaluates, into RUN/<verb>; None: new."""
        if self.subcommand == "fit" or self.has_root:
            return None
        given = self._get(self.config, "ckpt_path")
        if given and checkpoints.is_local(given) and (run := run_of(Path(given))):
            return run
        config = Path(self.config_path or "").resolve()
        named = config.name == "config.yaml" and is_version(config.parent)
        return RunFolder(config.parent) if named else None

    def _parse_ckpt_path(self) -> None:
        """Take weights and state from `--ckpt_path`, never classes or arguments.

        Lightning would let the file's hyperparameters override the command line and its configs.
        """

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Read checkpoints as tensors and plain values, unless `--weights_only false` is given.

        By default, Lightning unpickles a checkpoint from a URL.
        """
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is None:
            kwargs["weights_only"] = True
        given: Any = kwargs.get("ckpt_path")
        saved: dict[str, Any] = {}
        if given == "":
            raise ValueError("--ckpt_path must be a path, last or null, got ''")
        if given in ("last", "best"):
            given = kwargs["ckpt_path"] = checkpoints.last_checkpoint(self.trainer, given)
        if given and checkpoints.is_local(given):
            run = run_of(Path(given)) if subcommand == "fit" else None
            if run is not None and goes_on_in(self.trainer, run):
                self._hold(run)  # before its checkpoint is read
            recover(Path(given).parent)
            try:
                saved = checkpoints.read_for(given, subcommand, self.model, kwargs["weights_only"])
            except (ValueError, OSError) as error:
                if not is_one_of_many(self.trainer):
                    raise
                self.resumed.error = line(error).removeprefix("--ckpt_path: ")
        self.resumed.step = saved.get("global_step")
        self.saved = bool(saved)
        if saved:
            # A run goes on in its own directory, and its evaluation writes beside it.
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            warnings.filterwarnings("ignore", "The dirpath has changed from")
            files = self.trainer.strategy.checkpoint_io
            shards = is_folder_of_shards(Path(given))
            by_ranks = shards and isinstance(self.trainer.strategy, FullyShard)
            if shards and not by_ranks:
                saved = assemble(Path(given))
            if isinstance(files, CheckpointFiles) and not by_ranks:
                files.keep(given, saved)
        evaluation = None if self.beside is None else RunFolder(self.beside.path / subcommand)
        if evaluation is not None:
            self._hold(evaluation)
        is_refused = self.resumed.refusal is not None
        goes_on = saved and subcommand == "fit" and not is_refused
        resumed = run_of(Path(given)) if goes_on else None
        self.directory = RunDirectory(
            *(self.trainer, resumed, saved, SSLZooCLI.locks),
            None if is_refused else evaluation,
        )
        if resumed is not None:
            SaveRun.start = resumed.record().get("start")
        if goes_on:
            self._say_where_it_goes_on(given)
        return kwargs

    def _hold(self, folder: RunFolder) -> None:
        """Lock a directory that this command writes to, and that others may write to."""
        trainer = self.trainer
        if cast(Any, rank_zero_only).rank != 0 or cast(Any, trainer).fast_dev_run:
            return
        try:
            folder.path.mkdir(exist_ok=True)
            SSLZooCLI.locks.enter_context(locked(folder))
        except ValueError as error:
            if not is_one_of_many(trainer):
                raise
            self.resumed.refusal = str(error)

    def after_fit(self) -> None:
        folder = folder_of(self.trainer)  # collective
        if self.trainer.is_global_zero and not cast(Any, self.trainer).fast_dev_run:
            print(summary(self.trainer, self.model, folder, SaveRun.start))

    def _say_where_it_goes_on(self, given: str) -> None:
        self.resumed.checkpoint = Path(given).resolve()
        run = self.directory.continued
        for folder in [run] if run is not None else self.directory.claimed[:1]:
            how = "in the same directory" if run is not None else "as a new run"
            rank_zero_info(f"resuming from {given} {how}: {folder.path}")

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except BaseException as error:
            if hasattr(self, "directory") and not self.stop.has_trained:
                self.directory.undo()
            if self.saved and _is_in_restore(error):
                name = f"{type(self.model).__module__}.{type(self.model).__qualname__}"
                raise ValueError(
                    f"--ckpt_path must hold the state of a run of {name}, got "
                    f"{type(error).__name__}: {line(error)}"
                ) from error
            self.stop.requeue()  # an earlier rank may have stopped at the same signal already
            last = last_saved(self.trainer)
            if is_lost_rank(error):
                where = f"; the last checkpoint is {last}" if last else ""
                why = f"another rank has ended or is not reached{where} ({line(error):.200})"
                raise OSError(why) from error
            if isinstance(error, OSError) and last:
                raise OSError(f"{line(error)}; the last checkpoint is {last}") from error
            raise

    def predict(self, **kwargs: Any) -> None:
        """Predict without keeping the features in memory, since FeatureWriter writes them."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})


def _prepare_cpu(trainer: Trainer) -> None:
    """On a CPU, keep freed memory, and say where bfloat16 is slower than float32 (without AMX)."""
    if not isinstance(trainer.accelerator, CPUAccelerator):
        return
    keep_freed_memory()
    if str(trainer.precision).startswith("bf16") and not has_amx():
        rank_zero_info(
            f"this processor has no AMX for precision {trainer.precision}; "
            "--trainer.precision=auto is faster"
        )


@contextmanager
def _explained() -> Iterator[None]:
    """Say of a pickle's code how to admit it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        named = " ".join(_named_code(str(error)).split())
        raise ValueError(
            "the checkpoint must hold only tensors and plain values, since others could run code: "
            f"{named}; if you trust it, pass --weights_only=false"
        ) from None


def _is_in_restore(error: BaseException) -> bool:
    """Whether Lightning raises an error while it takes the state of a checkpoint."""
    files = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
    known = not isinstance(error, Exception) or isinstance(error, OSError | torch.OutOfMemoryError)
    return "checkpoint_connector.py" in files and not known


def _named_code(text: str) -> str:
    """Extract from torch's long message the sentence that names the code."""
    found = re.search(r"WeightsUnpickler error:\s*(.+?)(?:\n|$)", text)
    return found[1] if found else text[:200]


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _default_loggers(root: str, version: str | None = None) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(root, name="", version=version)]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(root, name="", version=version))
    return loggers


def run(args: Sequence[str] | None = None) -> SSLZooCLI:
    """Run the command from Python: `run(["fit", "--config", "quickstart"])`.

    Args:
        args: command-line arguments; None: the process's.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if (classes := listed_classes(arguments)) is not None:
        print(classes)
        raise SystemExit(0)
    # Lightning 2.6 reads a torch attribute that torch 2.14 deprecates.
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval")  # TrainingMonitor
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    SaveRun.command = shlex.join(["sslzoo", *arguments])
    SSLZooCLI.typed = tuple(arguments)
    SSLZooCLI.verb = arguments[0] if arguments else None
    verbs = (SSLZooCLI.verb,) if SSLZooCLI.verb in VERBS else VERBS
    SSLZooCLI.stop = SaveAndStop()
    SSLZooCLI.has_root = any(arg.startswith("--trainer.default_root_dir") for arg in arguments)
    saved = sys.argv
    with _explained(), SSLZooCLI.stop.on_signals(), ExitStack() as SSLZooCLI.locks:
        arguments, SSLZooCLI.config_path = with_config_paths(arguments)
        # The first word stays: Lightning starts the other ranks with it.
        sys.argv = [sys.argv[0], *arguments]
        try:
            return SSLZooCLI(
                LightningModule,
                LightningDataModule,
                trainer_class=RunTrainer,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                trainer_defaults={"enable_model_summary": False},
                save_config_callback=SaveRun,
                save_config_kwargs={"overwrite": True},
                parser_class=FitParser,
                parser_kwargs={
                    "prog": "sslzoo",
                    **{verb: {"description": DESCRIPTIONS[verb]} for verb in verbs},
                },
            )
        finally:
            if args is not None:
                sys.argv = saved
