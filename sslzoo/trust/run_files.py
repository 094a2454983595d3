"""Run files: safe reading of a run's config, and safe removal of its checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from lightning import Trainer
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, get_filesystem
from lightning.pytorch.callbacks import ModelCheckpoint

_MOST_VALUES = 1 << 18  # limit of values per config; those of runs have two hundred
_DEEPEST = 64  # maximum nesting of dictionaries and lists
_SECTIONS = ("model", "data", "trainer")


def read_config(path: Path) -> dict[str, Any]:
    """Read a run's YAML config, restricted to plain values.

    Raises:
        ValueError: the file is not YAML, names Python objects, is nested too deeply or too large.
        OSError: the file cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{path} is not a valid config: {line}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is not a valid config: it must be a dictionary, got {type(content).__name__}"
        )
    if _num_values(content, {}, _DEEPEST) > _MOST_VALUES:
        raise ValueError(
            f"{path} is not a valid config: with aliases expanded, it must have at most "
            f"{_MOST_VALUES} values, nested at most {_DEEPEST} levels deep"
        )
    for name in _SECTIONS:
        if content.get(name, {}) is None:
            del content[name]
        elif not isinstance(content.get(name, {}), dict):
            kind = type(content[name]).__name__
            raise ValueError(
                f"{path} is not a valid config: {name} must be a dictionary, got {kind}"
            )
    return content


def _num_values(value: Any, known: dict[int, int], depth: int) -> int:
    """Number of values with aliases expanded; above `_MOST_VALUES` if nested too deeply."""
    if not isinstance(value, dict | list):
        return 1
    if depth == 0:
        return _MOST_VALUES + 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES + 1  # infinite if it contains itself
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_num_values(part, known, depth - 1) for part in parts)
    return known[id(value)]


def forget_other_files(trainer: Trainer) -> None:
    """Prevent a resumed run from removing files other than its own checkpoints.

    Lightning 2.6 removes the files that the checkpoint's `ModelCheckpoint` state names as the last
    and the best, once there are newer ones, even if "..", or a URL such as local://, leads out of
    the run directory.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.dirpath is None:
            continue
        folder = str(callback.dirpath)
        for name in ("best_model_path", "last_model_path"):
            if not _is_harmless(getattr(callback, name), folder):
                setattr(callback, name, "")
        kept = (callback.kth_best_model_path, *callback.best_k_models)
        if not all(_is_harmless(path, folder) for path in kept):
            callback.best_k_models, callback.kth_best_model_path = {}, ""


def _is_harmless(path: Any, folder: str) -> bool:
    """Whether a checkpoint is in the folder, or is one that Lightning does not remove."""
    if not isinstance(path, str) or "\0" in path:
        return False
    if not _is_local_file_protocol(path):
        return path.startswith(f"{folder.rstrip('/')}/") and ".." not in path.split("/")
    inside = Path(folder).absolute() in Path(path).absolute().parents
    return not inside or Path(path).resolve().is_relative_to(Path(folder).resolve())


_TAG = "tag:yaml.org,2002:python/"


def refuse_objects(hparams_file: str | os.PathLike[str]) -> None:
    """Refuse hyperparameters in YAML that name a function, a class or a module.

    Lightning 2.6 would look them up among the imported modules.

    Raises:
        ValueError: there is such a value (the error names the first), or the file is not YAML.
        OSError: the file cannot be read.
    """
    path = os.fspath(hparams_file)
    if not path.lower().endswith((".yaml", ".yml")):
        return
    try:
        with get_filesystem(path).open(path, "r") as file:
            tags = [getattr(event, "tag", None) or "" for event in yaml.parse(file)]
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    for tag in tags:
        if tag.startswith(_TAG) and ":" in tag.removeprefix(_TAG):  # not for tuples and numbers
            raise ValueError(
                f"hyperparameters in {path} must be plain values, got "
                f"{tag.removeprefix(_TAG)!r}; pass it as an argument instead"
            )
