"""Run files: the config of a run's folder, and the files that a resumed run takes for its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from lightning import Trainer
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, get_filesystem
from lightning.pytorch.callbacks import ModelCheckpoint

_MOST_VALUES = 1 << 18  # of a config; those of a run have two hundred
_DEEPEST = 64  # dictionaries and lists within each other
_SECTIONS = ("model", "data", "trainer")


def read_config(path: Path) -> dict[str, Any]:
    """The YAML of a run, plain values.

    Raises:
        ValueError: it is none, names Python's objects, or is nested too deeply or too often.
        OSError: it cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{path} is not the YAML of a run: {line}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not the YAML of a run: it holds a {type(content).__name__}")
    if _num_values(content, {}, _DEEPEST) > _MOST_VALUES:
        raise ValueError(
            f"{path} is not the YAML of a run: it is nested too deeply, or more than "
            f"{_MOST_VALUES} values once its aliases are followed"
        )
    for name in _SECTIONS:
        if content.get(name, {}) is None:
            del content[name]
        elif not isinstance(content.get(name, {}), dict):
            kind = type(content[name]).__name__
            raise ValueError(f"{path} is not the YAML of a run: its {name} is a {kind}")
    return content


def _num_values(value: Any, known: dict[int, int], depth: int) -> int:
    """How many there are with each alias followed; above `_MOST_VALUES` for what is too deep."""
    if not isinstance(value, dict | list):
        return 1
    if depth == 0:
        return _MOST_VALUES + 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES + 1  # within itself it is endless
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_num_values(part, known, depth - 1) for part in parts)
    return known[id(value)]


def forget_other_files(trainer: Trainer) -> None:
    """Let a resumed run remove none but its own checkpoints.

    Lightning 2.6 removes the files that the checkpoint's state of `ModelCheckpoint` names as the
    last and the best, once there are newer ones: also where "..", or an address such as local://,
    leads out of the run's folder.
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
    """Whether a checkpoint lies in the folder, or is one that Lightning leaves alone."""
    if not isinstance(path, str) or "\0" in path:
        return False
    if not _is_local_file_protocol(path):
        return path.startswith(f"{folder.rstrip('/')}/") and ".." not in path.split("/")
    inside = Path(folder).absolute() in Path(path).absolute().parents
    return not inside or Path(path).resolve().is_relative_to(Path(folder).resolve())


_TAG = "tag:yaml.org,2002:python/"


def refuse_objects(hparams_file: str | os.PathLike[str]) -> None:
    """Refuse hyper-parameters in YAML that name a function, a class or a module.

    Lightning 2.6 would look them up among what is imported.

    Raises:
        ValueError: names the first, or the file is no YAML.
        OSError: it cannot be read.
    """
    path = os.fspath(hparams_file)
    if not path.lower().endswith((".yaml", ".yml")):
        return
    try:
        with get_filesystem(path).open(path, "r") as file:
            tags = [getattr(event, "tag", None) or "" for event in yaml.parse(file)]
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    for tag in tags:
        if tag.startswith(_TAG) and ":" in tag.removeprefix(_TAG):  # tuples and numbers have none
            raise ValueError(
                f"{path} names {tag.removeprefix(_TAG)!r}, and hyper-parameters are plain values: "
                "pass it as an argument"
            )
