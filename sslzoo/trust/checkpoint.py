"""Checkpoint: build the module of a Lightning checkpoint, with allowed classes only."""

from __future__ import annotations

import inspect
import os
import pickle
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from sslzoo.trust.admit import admit
from sslzoo.trust.build import build, build_trusted, hints_of, shell
from sslzoo.trust.fill import check_fit
from sslzoo.trust.pickles import refuse_deep_pickles
from sslzoo.trust.renamed import renamed_class

# Errors that torch raises for a file that is damaged or of another kind.
_DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError)


def read_checkpoint(path: Any) -> dict[str, Any]:
    """Read a Lightning checkpoint, restricted to tensors and plain values.

    Args:
        path: a path, or an open file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or holds anything else.
    """
    try:
        if isinstance(path, str | os.PathLike):
            refuse_deep_pickles(Path(path))
        saved = torch.load(path, "cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except _DAMAGED as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path} must hold only tensors and plain values: {text:.200}") from None
    if not isinstance(saved, dict):
        raise ValueError(f"{path} must be a Lightning checkpoint, got a {type(saved).__name__}")
    return saved


def hyper_parameters(saved: Any, where: str) -> dict[str, Any]:
    """Hyperparameters of a checkpoint, with `_class_path` if it is from `sslzoo fit`.

    Raises:
        ValueError: the entry is something else.
    """
    found = saved.get("hyper_parameters", {}) if isinstance(saved, Mapping) else {}
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{where}: hyper_parameters must be a dictionary, got {found!r:.200}")
    return dict(found)


def module_of(
    saved: Mapping[str, Any],
    where: str,
    base: type[LightningModule] = LightningModule,
    whole: bool = False,
    strict: bool = True,
    trust: bool = False,
    **given: Any,
) -> LightningModule:
    """Build the module of a checkpoint of `sslzoo fit`, with its weights, on the CPU.

    Args:
        saved: the file's contents.
        where: the file, for errors.
        base: required class of the module.
        whole: whether to build what only training needs: optimizer, schedule and step counter.
        strict: whether missing or unexpected names are refused.
        trust: whether the file may name any class that Python can import.
        given: arguments of the module that replace the file's.

    Raises:
        UntrustedError: the file names a class that it may not name.
        ValueError: the file does not name its class, or its arguments or tensors do not fit.
    """
    args = hyper_parameters(saved, where)
    name = renamed_class(args.pop("_class_path", None))
    args = {key: value for key, value in args.items() if not key.startswith("_")}
    if name is None:
        encoder = "" if whole else ", or sslzoo.load(PATH, backbone=NET) for the encoder alone"
        raise ValueError(
            f"{where} must name its class, as checkpoints of `sslzoo fit` do, got none; use "
            f"YourMethod.load_from_checkpoint{encoder}"
        )
    state = saved.get("state_dict")
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{where}: state_dict must be a dictionary of tensors, got {type(state).__name__}"
        )
    if not whole and not trust:
        args = _without_factories(admit(name, base, where), args)
    spec = {"class_path": name, "init_args": args}
    # The caller's objects are not on the meta device.
    empty = None if given or trust or not strict else shell(spec, base, where)
    if empty is not None:
        check_fit(empty, state, where)
    if trust:
        module = build_trusted({"class_path": name, "dict_kwargs": args}, base, **given)
    else:
        module = build(spec, base, where, **given)
    if strict:
        check_fit(module, state, where)
    if whole:
        try:
            module.on_load_checkpoint(dict(saved))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{where} must hold the state of {name}, got {error!r}") from error
    module.load_state_dict(dict(state), strict=strict)
    return module


def _without_factories(cls: type, args: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the optional factories: optimizer, schedule, parameter groups."""
    hints, parameters = hints_of(cls), inspect.signature(cls).parameters
    optional = {name for name, p in parameters.items() if p.default is not p.empty}
    unused = {name for name, hint in hints.items() if name == "schedule" or _is_factory(hint)}
    return {key: value for key, value in args.items() if key not in unused & optional}


def _is_factory(hint: Any) -> bool:
    arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    if len(arms) == 1 and typing.get_origin(hint) is not Callable:
        hint = arms[0]
    return typing.get_origin(hint) is Callable
