"""Checkpoints of the command: which file `--ckpt_path` means, and whether this run can use it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.callbacks import ModelCheckpoint
from packaging.version import InvalidVersion, Version
from torch import Tensor

from sslzoo.atomic_write import exchange, part_of, recover, remove, replacing, save_tensors
from sslzoo.file_kind import other_kind
from sslzoo.run_folder import CHECKPOINTS, RunFolder, run_of, versions
from sslzoo.trust import (
    build,
    check_fit,
    hyper_parameters,
    is_folder_of_shards,
    outline,
    shell,
)
from sslzoo.trust.renamed import renamed_class
from sslzoo.zoo.safe_read import read

LIGHTNINGS = "pytorch-lightning_version"
_RESUMED = ("loops", "callbacks", "optimizer_states", "lr_schedulers")  # what only `fit` reads
_ADMITTED = {  # beginnings of the classes that a run's config may name for the trainer
    "callbacks": (
        *("sslzoo.callbacks.", "sslzoo.report.RunReport"),
        *("lightning.pytorch.callbacks.ModelCheckpoint", "ModelCheckpoint"),
    ),
    "strategy": ("sslzoo.sharding.FullyShard",),
}
_OURS = ("sslzoo.", "lightning.")  # modules whose hooks make no parts
_FREE = ("callbacks", "logger", "plugins", "strategy", "profiler", "accelerator")


class CheckpointFiles(TorchCheckpointIO):
    """Write each checkpoint atomically; give a checkpoint that was read once without a second read.

    A distributed checkpoint, which is a folder, is replaced by the file of the same name.
    Lightning writes it to the system's temporary folder and moves it, which across file systems is
    a copy: a full disk or a kill would leave part of it in place of the last checkpoint.
    """

    def __init__(self) -> None:
        self._read: tuple[str, dict[str, Any]] | None = None

    def keep(self, path: str, saved: dict[str, Any]) -> None:
        """Keep the contents of a file for the next `load_checkpoint`."""
        self._read = (path, saved)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        shards = is_folder_of_shards(target)
        written = part_of(target) if shards else target
        if shards:
            remove(written)
        with replacing(written) as part:
            save_tensors(checkpoint, part, target)
        if shards:
            exchange(written, target)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        kept, self._read = self._read, None
        if kept is not None and kept[0] == str(path):
            return kept[1]
        return super().load_checkpoint(path, map_location, weights_only)


def is_local(given: str) -> bool:
    """Whether a value of `--ckpt_path` is a path, not an address or a word of Lightning's."""
    return given != "hpc" and not re.match(r"registry\b|\w+://", given)


def last_checkpoint(trainer: Trainer, which: str) -> str:
    """Last checkpoint of the newest run in this run's parent directory.

    Lightning would search this run's own version, which has none, and start from scratch.

    Args:
        trainer: its root directory and its ModelCheckpoints' are searched.
        which: "last", or "best", which is refused.

    Raises:
        ValueError: there is none.
    """
    savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    folders = [Path(saver.dirpath) for saver in savers if saver.dirpath]
    root = Path(trainer.default_root_dir)
    for folder in (*folders, *(run.checkpoint.parent for run in versions(root))):
        recover(folder)
        lasts = sorted(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
        if which == "last" and lasts:
            return str(lasts[-1])
        if which == "best" and (known := sorted(folder.glob("*.ckpt"))):
            names = ", ".join(map(str, known))
            raise ValueError(
                f"--ckpt_path must be 'last' or one of {names}, got 'best', which only the process "
                "that trained knows"
            )
    looked = ", ".join(map(str, folders or [root / "version_N" / CHECKPOINTS]))
    raise ValueError(f"--ckpt_path must be a path, since {looked} has no checkpoint, got {which!r}")


def implied_config(given: str) -> str:
    """The config of the run that a checkpoint belongs to, for a command without `--config`.

    Only what `sslzoo.trust` admits is taken without the user's word.

    Raises:
        ValueError: the checkpoint is not in a run directory, or its config names other classes.
    """
    run = run_of(Path(given)) if is_local(given) else None
    if run is None:
        raise ValueError(
            f"--config or --model must be given with --ckpt_path {given}, which is not in the "
            "checkpoints/ of a run directory with a config.yaml, got neither"
        )
    path = str(run.config_file)
    try:
        content = run.config()
        shell(content.get("model", {}), LightningModule, path)
        build(content.get("data", {}), LightningDataModule, path)
        for name in _FREE:
            _refuse_free(name, content.get("trainer", {}).get(name), path)
    except ValueError as error:
        raise ValueError(
            f"{error}; or pass --config {path}, which is your word for what it names"
        ) from None
    return path


def _refuse_free(name: str, value: Any, where: str) -> None:
    """Refuse a trainer's argument that names other classes than `_ADMITTED`."""
    for part in value if isinstance(value, list) else [value]:
        named = part.get("class_path") if isinstance(part, Mapping) else None
        ours = named is not None and str(named).startswith(_ADMITTED.get(name, ()))
        plain = part is None or isinstance(part, bool | int) or name in ("strategy", "accelerator")
        if not ours and not (plain and (named is None and "." not in str(part))):
            raise ValueError(
                f"trainer.{name} of {where} must be plain or callbacks of sslzoo, got {part!r:.100}"
            )


def read_for(given: str, verb: str, model: LightningModule, weights_only: bool) -> dict[str, Any]:
    """Read a checkpoint, once, and check that a verb can use it for a module.

    Args:
        given: the path.
        verb: fit, validate, test or predict.
        model: the module that the command line describes.
        weights_only: whether only tensors and plain values are read.

    Raises:
        ValueError: the file is missing or damaged, or belongs to another module.
        OSError: the file cannot be read.
    """
    path = Path(given)
    try:
        if is_folder_of_shards(path):
            saved = outline(path)
        elif weights_only or not path.is_file() or other_kind(path):
            saved = read(path)
        else:
            saved = torch.load(path, "cpu", weights_only=False)
        if not isinstance(saved, dict) or LIGHTNINGS not in saved:
            held = list(saved)[:3] if isinstance(saved, Mapping) else type(saved).__name__
            raise ValueError(f"{path} must be a Lightning checkpoint, got {held!r:.200}")
    except (ValueError, OSError) as error:
        inner = RunFolder(path).checkpoint
        more = f"; its checkpoint is {inner}" if inner.is_file() else ""
        if "could run code" in str(error) and _has_lightnings_key(path):
            more = "; if you trust it, pass --weights_only=false"
        raise ValueError(f"--ckpt_path: {error}{more}") from None
    _check_version(saved[LIGHTNINGS], path)
    _check_parts(saved, path, verb)
    _check_module(saved, path, verb, model)
    return saved


def _has_lightnings_key(path: Path) -> bool:
    """Whether the beginning of a file, without loading it, contains Lightning's key."""
    with path.open("rb") as file:
        return LIGHTNINGS.encode() in file.read(1 << 24)


def _check_version(saved: Any, path: Path) -> None:
    own = Version(lightning.__version__)
    try:
        newer = Version(saved).major > own.major
    except (InvalidVersion, TypeError):
        raise ValueError(f"{LIGHTNINGS} of {path} must be a version, got {saved!r:.50}") from None
    if newer:
        raise ValueError(
            f"{LIGHTNINGS} of {path} must be at most that of the installed Lightning, {own}, "
            f"got {saved}; update lightning"
        )


def _check_parts(saved: Mapping[str, Any], path: Path, verb: str) -> None:
    state = saved.get("state_dict")
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"state_dict of {path} must be tensors by name, got {type(state).__name__}"
        )
    missing = [name for name in _RESUMED if name not in saved]
    if verb == "fit" and missing:
        raise ValueError(
            f"--ckpt_path of fit must be a whole checkpoint, got {path} without "
            f"{', '.join(missing)}; it holds weights only, which cannot be resumed"
        )
    kinds = {"loops": Mapping, "callbacks": Mapping, "optimizer_states": list, "sslzoo": Mapping}
    for name, kind in kinds.items():
        if name in saved and not isinstance(saved[name], kind):
            raise ValueError(
                f"{name} of {path} must be a {'list' if kind is list else 'dictionary'}, "
                f"got {type(saved[name]).__name__}"
            )
    if verb == "fit" and not saved["optimizer_states"]:
        raise ValueError(f"optimizer_states of {path} must have a state per optimizer, got none")


def _check_module(saved: Mapping[str, Any], path: Path, verb: str, model: LightningModule) -> None:
    """Refuse a checkpoint of another class, of other shapes, or of another optimizer."""
    theirs = hyper_parameters(saved, str(path))
    own = f"{type(model).__module__}.{type(model).__qualname__}"
    named = renamed_class(theirs.get("_class_path"))
    if isinstance(named, str) and _class_name(named) != type(model).__qualname__:
        raise ValueError(
            f"the model must be {named}, the class of {path}, got {own}; for its encoder alone use "
            "sslzoo.load, and omit --ckpt_path to train anew"
        )
    differing = _differences(theirs, dict(model.hparams))
    own_parts = type(model).configure_model.__module__
    lazily = not own_parts.startswith(_OURS) or not model.strict_loading
    if not lazily and not _makes_parts_later(model):
        try:
            check_fit(model, saved["state_dict"], str(path))
        except ValueError as error:
            more = f"; their configs differ in {'; '.join(differing)}" if differing else ""
            raise ValueError(f"--ckpt_path: {error}{more}") from None
    for text in differing:
        if verb == "fit" and text.startswith("optimizer.class_path"):
            raise ValueError(
                f"the optimizer of a resumed run must be that of {path}, whose state it goes on "
                f"with: {text}"
            )


def _makes_parts_later(model: LightningModule) -> bool:
    """Whether the class has its own `setup`, where users build parts that depend on the data."""
    return not type(model).setup.__module__.startswith(_OURS)


def _class_name(name: str) -> str:
    return name.rpartition(".")[2]


def _differences(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Settings that two modules' hyperparameters do not have alike, classes first."""
    a, b = (dict(_flat({k: v for k, v in part.items() if k[0] != "_"})) for part in (theirs, own))
    names = [
        name for name in a if name in b and _class_name(str(a[name])) != _class_name(str(b[name]))
    ]
    names.sort(key=lambda name: not name.endswith("class_path"))
    return [f"{name} must be {a[name]!r:.100}, got {b[name]!r:.100}" for name in names[:3]]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
