"""Checkpoint: the module behind a Lightning checkpoint, whose file chooses no class of its own."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from lightning import LightningModule
from torch import Tensor

from sslzoo.trust.admit import admit
from sslzoo.trust.build import build, build_trusted, hints_of, shell
from sslzoo.trust.fill import check_fit
from sslzoo.trust.renamed import renamed_class


def hyper_parameters(saved: Any, where: str) -> dict[str, Any]:
    """The hyper-parameters of a checkpoint, `_class_path` among them where the command made it.

    Raises:
        ValueError: it holds something else in their place.
    """
    found = saved.get("hyper_parameters", {}) if isinstance(saved, Mapping) else {}
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{where}: hyper_parameters must be values by name, got {found!r:.200}")
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
    """The module that a checkpoint of the command holds, filled with its weights, on the CPU.

    Args:
        saved: what the file holds.
        where: the file, for errors.
        base: a class that the module must be of.
        whole: also what only training needs, an optimizer and its schedule, and the clock.
        strict: whether names that are missing or not wanted are refused.
        trust: whether the file may name any class that Python can import.
        given: arguments of the module, in place of the file's.

    Raises:
        UntrustedError: the file names a class that it may not name.
        ValueError: it does not name its class, its arguments do not fit, or its tensors do not.
    """
    args = hyper_parameters(saved, where)
    name = renamed_class(args.pop("_class_path", None))
    args = {key: value for key, value in args.items() if not key.startswith("_")}
    if name is None:
        encoder = "" if whole else ", or sslzoo.load(PATH, backbone=NET) for the encoder alone"
        raise ValueError(
            f"{where} does not name its class, as checkpoints of the command do: use "
            f"YourMethod.load_from_checkpoint{encoder}"
        )
    state = saved.get("state_dict")
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{where}: state_dict must be tensors by name, got {type(state).__name__}")
    if not whole and not trust:
        args = _without_factories(admit(name, base, where), args)
    spec = {"class_path": name, "init_args": args}
    # Objects of the caller's are not on the meta device.
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
            raise ValueError(f"{where} has no state of {name}: {error!r}") from error
    module.load_state_dict(dict(state), strict=strict)
    return module


def _without_factories(cls: type, args: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is called later and may be left out: optimizer, schedule, parameter groups."""
    hints, parameters = hints_of(cls), inspect.signature(cls).parameters
    optional = {name for name, p in parameters.items() if p.default is not p.empty}
    unused = {name for name, hint in hints.items() if name == "schedule" or _is_factory(hint)}
    return {key: value for key, value in args.items() if key not in unused & optional}


def _is_factory(hint: Any) -> bool:
    arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    if len(arms) == 1 and typing.get_origin(hint) is not Callable:
        hint = arms[0]
    return typing.get_origin(hint) is Callable
