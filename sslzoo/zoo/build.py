"""Build an encoder from a class path and load weights with checked names and shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sslzoo.trust import build, check_fit, fill, shell, undrawn
from sslzoo.zoo.safe_read import check_finite, tensors_by_name


def build_backbone(
    backbone: Mapping[str, Any], where: str = "the card", trust: bool = False
) -> nn.Module:
    """Build the module given by `class_path` and `init_args`.

    It draws its initial weights from a generator of its own.

    Args:
        backbone: `class_path` and `init_args`.
        where: the file that contains them, for errors.
        trust: whether the user wrote them, so that any class may be built.

    Raises:
        ValueError: the class does not exist, a file may not name it, it is not an nn.Module, or
            the arguments do not fit.
    """
    return build(backbone, nn.Module, where, trust)  # type: ignore[no-any-return]


def filled(
    backbone: Mapping[str, Any], state: Mapping[str, Tensor], where: str, trust: bool = False
) -> nn.Module:
    """Build an encoder with its weights, checking that they fit before allocating memory.

    Args:
        backbone: `class_path` and `init_args`.
        state: the encoder's tensors by name.
        where: the file, for errors.
        trust: see `build_backbone`.

    Raises:
        ValueError: see `build_backbone`, `complete` and `fill`.
    """
    empty = None if trust else shell(backbone, nn.Module, where)
    if empty is not None:
        check_fit(empty, complete(state, empty, where), where)
    with contextlib.nullcontext() if trust else undrawn():
        encoder = build_backbone(backbone, where, trust)
    full = complete(state, encoder, where) if empty is None else _with_counts(state, encoder)
    fill(encoder, full, where)
    return encoder


def count_parameters(encoder: nn.Module) -> int:
    """Number of parameters, for a card."""
    return sum(parameter.numel() for parameter in encoder.parameters())


def complete(
    state: Mapping[str, Tensor], encoder: nn.Module, path: str = "the file"
) -> dict[str, Tensor]:
    """Complete a state with the encoder's batch-norm step counts if the file has none.

    Old files and files not from torch have no such counts.

    Args:
        state: tensors by name.
        encoder: the module to fill.
        path: the file, for the error.

    Raises:
        ValueError: the file contains no state, or a nested one that only a layout finds; integers
            where the encoder has floats, or vice versa; NaN or infinity.
    """
    state = tensors_by_name(state, f"{path} (without a layout)")
    own = encoder.state_dict()
    wrong = [
        f"{name}: {state[name].dtype} for {value.dtype}"
        for name, value in own.items()
        if name in state and _kind(state[name]) != _kind(value)
    ]
    if wrong:
        raise ValueError(
            f"{path} does not fit {type(encoder).__name__}: {len(wrong)} of {len(own)} tensors "
            f"have floats for integers or vice versa, such as {wrong[:3]}"
        )
    check_finite(state, path)
    return _with_counts(state, encoder)


def _with_counts(state: Mapping[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    own = encoder.state_dict()
    counts = {n: value for n, value in own.items() if n.endswith(".num_batches_tracked")}
    return {**({} if counts.keys() & state.keys() else counts), **state}


def under(saved: Any, prefix: str, path: str) -> dict[str, Tensor]:
    """Select the tensors whose names have a prefix, and strip it.

    Raises:
        ValueError: no name has the prefix.
    """
    state = saved.get("state_dict", saved) if isinstance(saved, Mapping) else saved
    named = state if isinstance(state, Mapping) else {}
    kept = {
        name.removeprefix(prefix): value
        for name, value in named.items()
        if isinstance(name, str) and name.startswith(prefix)
    }
    if not kept or not all(isinstance(value, Tensor) for value in kept.values()):
        raise ValueError(
            f"{path} must have tensors under {prefix!r}, got {list(named)[:5]!r:.200}; set --prefix"
        )
    return kept


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "float"
    return "complex" if tensor.is_complex() else "integer"
