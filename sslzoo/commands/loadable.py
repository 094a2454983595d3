"""Refuse, before training, a run whose config or checkpoints could not be loaded again."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace

from sslzoo.trust import PLAIN

NOT_WRITTEN = "Unable to serialize instance"  # jsonargparse's text for an object


def refuse_config(parser: Any, config: Any) -> dict[str, Any]:
    """Raise an error if config.yaml could not be written, or would be read back differently.

    Returns:
        The config as plain values.
    """
    exits, parser.exit_on_error = parser.exit_on_error, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an argument that cannot be written is refused below
            text = parser.dump(config, skip_none=False, skip_validation=True)
            plain: dict[str, Any] = yaml.safe_load(text)
            for name, value in _leaves(plain):
                if isinstance(value, str) and value.startswith(NOT_WRITTEN):
                    _refuse(name, value.removeprefix(NOT_WRITTEN))
            again = parser.parse_string(text)
            if parser.dump(again, skip_none=False, skip_validation=True) == text:
                return plain
            why = "reads back differently"
    except Exception as error:
        named = re.findall(r'key "([^"]+)"', str(error))
        why = f"cannot be read back: {named[-1] if named else str(error).splitlines()[0]}"
    finally:
        parser.exit_on_error = exits
    for name, value in _leaves(config):
        if not (isinstance(value, PLAIN) or hasattr(value, "__fspath__") or callable(value)):
            _refuse(name, repr(value))
    raise ValueError(f"the config must read back unchanged to load the run, but it {why}")


def refuse_hyperparameters(module: Any, name: str) -> None:
    """Raise an error if a checkpoint could not be loaded with `weights_only=True`."""
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
    raise ValueError(
        f"{name} must be a number, a string, a list or dict of these, or class_path with "
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
