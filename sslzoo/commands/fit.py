"""Training command: LightningCLI with config names, a run directory and a progress bar.

    sslzoo fit --config simclr/cifar10_resnet18_200ep
    sslzoo validate | test | predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt

Modules and data modules are named by class path; nothing is looked up in a registry.
"""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

import sslzoo.data
import sslzoo.methods  # noqa: F401 (what is imported has short names, --model SimCLR)
from sslzoo.callbacks.feature_writer import FeatureWriter
from sslzoo.callbacks.progress import ProgressBar
from sslzoo.commands.configs import config_folders, find_config, known_configs
from sslzoo.file_kind import other_kind
from sslzoo.run_folder import CHECKPOINTS, RECORD, RunFolder, is_version, versions
from sslzoo.runs.provenance import provenance
from sslzoo.trust import PLAIN, forget_other_files
from sslzoo.zoo.safe_read import read

NOT_WRITTEN = "Unable to serialize instance"  # jsonargparse's text for an object


def _with_config_paths(args: Sequence[str]) -> tuple[list[str], str | None]:
    """Replace each `--config NAME` by its path; return the arguments and the last path.

    Configs move to the front, after the subcommand, so that all other arguments override them
    wherever they are given.
    """
    configs: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in ("--config", "-c"):
            configs.append(_existing_config(next(rest, "")))
        elif arg.startswith("--config="):
            configs.append(_existing_config(arg.removeprefix("--config=")))
        else:
            others.append(arg)
    named = [f"--config={path}" for path in configs]
    return others[:1] + named + others[1:], configs[-1] if configs else None


def _existing_config(name: str) -> str:
    path = find_config(name)
    if not Path(path).is_file():
        raise SystemExit(
            f"sslzoo: --config must be a file or the name of a shipped config, got {name!r}; "
            f"the shipped ones are {', '.join(known_configs())}"
        )
    return path


def _run_folder(config: str | None) -> str:
    """Run directory runs/<config's name>, or for a run's saved config that run's own."""
    if config is None:
        return "runs"
    path = Path(config).resolve()
    for folder in config_folders():
        if path.is_relative_to(folder.resolve()):
            return str(Path("runs") / path.relative_to(folder.resolve()).with_suffix(""))
    if path.stem == "config" and is_version(path.parent):
        return str(path.parent.parent)
    return str(Path("runs") / path.stem)


class SaveRun(SaveConfigCallback):
    """Write `run.json`, the run's provenance, next to the saved config."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = trainer.log_dir  # collective, and `save_config` is called on rank 0 only
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert self.folder is not None
        about = {
            "command": SSLZooCLI.command,
            "accelerator": trainer.accelerator.name(),
            "ranks": trainer.world_size,
            **provenance(),
        }
        with get_filesystem(self.folder).open(f"{self.folder}/{RECORD}", "w") as file:
            file.write(json.dumps(about, indent=1) + "\n")


class OwnFiles(Callback):
    """Prevent a resumed run from removing other files than its own checkpoints."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        forget_other_files(trainer)


class SSLZooCLI(LightningCLI):
    """LightningCLI in subclass mode for both module and data module."""

    config_path: str | None = None
    command: str | None = None
    verb: str | None = None

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Give the verb in use alone: each takes a tenth of the start-up to build."""
        every = LightningCLI.subcommands()
        return {self.verb: every[self.verb]} if self.verb in every else every

    def before_instantiate_classes(self) -> None:
        if self.subcommand == "fit":
            _refuse_a_config_that_does_not_load_again(self._parser("fit"), self.config["fit"])

    def after_instantiate_classes(self) -> None:
        if self.subcommand == "fit":
            _refuse_hyperparameters_that_do_not_load_again(self.model, "model")
            _refuse_hyperparameters_that_do_not_load_again(self.datamodule, "data")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer", default={})
        root = config.get("default_root_dir") or _run_folder(self.config_path)
        kwargs["default_root_dir"] = root
        if config.get("logger") in (None, True):
            kwargs["logger"] = _default_loggers(str(root))
        callbacks = config.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if config.get("enable_progress_bar") is not False and not any(
            isinstance(c, AnyProgressBar) for c in callbacks
        ):
            callbacks.append(ProgressBar())
        if config.get("enable_checkpointing") is not False and not any(
            isinstance(c, ModelCheckpoint) for c in callbacks
        ):
            callbacks.append(ModelCheckpoint(save_last=True))
        if self.subcommand == "predict" and not any(
            isinstance(c, FeatureWriter) for c in callbacks
        ):
            callbacks.append(FeatureWriter())
        kwargs["callbacks"] = [*callbacks, OwnFiles()]
        trainer = super().instantiate_trainer(**kwargs)
        _say_where_bfloat16_is_slow(trainer)
        return trainer

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
        given = kwargs.get("ckpt_path")
        if given in ("last", "best"):
            given = kwargs["ckpt_path"] = _checkpoint_of_this_config(self.trainer, given)
        if given and given != "hpc" and not re.match(r"registry\b|\w+://", given):
            _refuse_what_is_no_checkpoint(Path(given), kwargs["weights_only"])
        return kwargs

    def predict(self, **kwargs: Any) -> None:
        """Predict without keeping the features in memory, since FeatureWriter writes them."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})


def _checkpoint_of_this_config(trainer: Trainer, which: str) -> str:
    """Last checkpoint of the newest run in this run's parent directory.

    Lightning would search this run's own version, which has none, and start from scratch.
    """
    savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    folders = [Path(saver.dirpath) for saver in savers if saver.dirpath]
    root = Path(trainer.default_root_dir)
    for folder in (*folders, *(run.checkpoint.parent for run in versions(root))):
        lasts = sorted(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
        if which == "last" and lasts:
            return str(lasts[-1])
        if which == "best" and (known := sorted(folder.glob("*.ckpt"))):
            names = ", ".join(map(str, known))
            raise SystemExit(
                f"sslzoo: --ckpt_path must be 'last' or one of {names}, got 'best', which only "
                "the process that trained knows"
            )
    looked = ", ".join(map(str, folders or [root / "version_N" / CHECKPOINTS]))
    raise SystemExit(
        f"sslzoo: --ckpt_path must be a path, since {looked} has no checkpoint, got {which!r}"
    )


def _refuse_what_is_no_checkpoint(path: Path, weights_only: bool) -> None:
    """Exit if a file is missing, damaged, or not a run's checkpoint."""
    try:
        if weights_only or not path.is_file() or other_kind(path):
            saved = read(path)
            if not isinstance(saved, Mapping) or "pytorch-lightning_version" not in saved:
                held = list(saved)[:3] if isinstance(saved, Mapping) else type(saved).__name__
                raise ValueError(f"{path} must be a Lightning checkpoint, got {held!r:.200}")
    except (ValueError, OSError) as error:
        inner = RunFolder(path).checkpoint
        more = f"; its checkpoint is {inner}" if inner.is_file() else ""
        if "could run code" in str(error) and _has_lightning_key(path):
            more = "; if you trust it, pass --weights_only=false"
        raise SystemExit(f"sslzoo: --ckpt_path: {error}{more}") from None


def _has_lightning_key(path: Path) -> bool:
    """Whether the beginning of a file, without loading it, contains Lightning's key."""
    with path.open("rb") as file:
        return b"pytorch-lightning_version" in file.read(1 << 24)


def _refuse_a_config_that_does_not_load_again(parser: Any, config: Any) -> None:
    """Exit if config.yaml could not be written, or would be read back differently."""
    exits, parser.exit_on_error = parser.exit_on_error, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an argument that cannot be written is refused below
            text = parser.dump(config, skip_none=False)
            for name, value in _leaves(yaml.safe_load(text)):
                if isinstance(value, str) and value.startswith(NOT_WRITTEN):
                    _refuse(name, value.removeprefix(NOT_WRITTEN))
            if parser.dump(parser.parse_string(text), skip_none=False) == text:
                return
            why = "reads back differently"
    except Exception as error:
        named = re.findall(r'key "([^"]+)"', str(error))
        why = f"cannot be read back: {named[-1] if named else str(error).splitlines()[0]}"
    finally:
        parser.exit_on_error = exits
    for name, value in _leaves(config):
        if not (isinstance(value, PLAIN) or hasattr(value, "__fspath__") or callable(value)):
            _refuse(name, repr(value))
    raise SystemExit(f"sslzoo: the config must read back unchanged to load the run, but it {why}")


def _refuse_hyperparameters_that_do_not_load_again(module: Any, name: str) -> None:
    """Exit if a checkpoint of the run could not be loaded with `weights_only=True`."""
    for key, value in _leaves(dict(module.hparams) if module is not None else {}, name):
        if isinstance(value, PLAIN):
            continue
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception:
            _refuse(key, repr(value))


def _refuse(name: str, value: str) -> NoReturn:
    raise SystemExit(
        f"sslzoo: {name} must be a number, a string, a list or dict of these, or class_path with "
        f"init_args, so that the run can be loaded again, got {value.strip()}; set it in the config"
    )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All leaf values of a config with their full names."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _leaves(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _say_where_bfloat16_is_slow(trainer: Trainer) -> None:
    """Warn on processors without bfloat16 instructions, where its convolutions are slow."""
    bfloat16 = str(trainer.precision).startswith("bf16")
    without = torch.backends.cpu.get_cpu_capability() in ("NO AVX", "DEFAULT", "AVX2")
    if bfloat16 and without and isinstance(trainer.accelerator, CPUAccelerator):
        rank_zero_info(
            f"this processor has no instructions for precision {trainer.precision}; "
            "--trainer.precision=32-true will be many times faster"
        )


def _named_code(text: str) -> str:
    """Extract from torch's long message the sentence that names the code."""
    found = re.search(r"WeightsUnpickler error:\s*(.+?)(?:\n|$)", text)
    return found[1] if found else text[:200]


def _default_loggers(root: str) -> list[Logger]:
    csv = CSVLogger(root, name="")
    loggers: list[Logger] = [csv]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(root, name="", version=csv.version))
    return loggers


def run(args: Sequence[str] | None = None) -> SSLZooCLI:
    """Run the command from Python: `run(["fit", "--config", "quickstart"])`.

    Args:
        args: command-line arguments; None: the process's.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    # Lightning 2.6 reads a torch attribute that torch 2.14 deprecates.
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
    SSLZooCLI.command = shlex.join(["sslzoo", *arguments])
    SSLZooCLI.verb = arguments[0] if arguments else None
    arguments, SSLZooCLI.config_path = _with_config_paths(arguments)
    # The first word stays: Lightning starts the other ranks with it.
    saved, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        return SSLZooCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={"enable_model_summary": False},
            save_config_callback=SaveRun,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "sslzoo"},
        )
    except pickle.UnpicklingError as error:
        named = " ".join(_named_code(str(error)).split())
        raise SystemExit(
            "sslzoo: the checkpoint must hold only tensors and plain values, since others could "
            f"run code: {named}; if you trust it, pass --weights_only=false"
        ) from None
    finally:
        if args is not None:
            sys.argv = saved
