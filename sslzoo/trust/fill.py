"""Fill: load weights into a module, requiring that all names and shapes match."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def check_fit(module: nn.Module, saved: Mapping[str, Tensor], path: str) -> None:
    """Check that weights match a module's names and shapes exactly.

    Args:
        module: on any device, including "meta".
        saved: tensors by name.
        path: the file, for the error.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ.
    """
    own = module.state_dict()
    shapes = sorted(
        f"{name}: {tuple(saved[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & saved.keys()
        if own[name].shape != saved[name].shape
    )
    missing, unwanted = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    wrong = [*missing, *unwanted, *shapes]
    if wrong:
        raise ValueError(
            f"{path!r} does not fit {type(module).__name__}: {len(wrong)} of {len(own)} tensors "
            f"differ in name or shape, such as {wrong[:3]} ({len(missing)} missing, "
            f"{len(unwanted)} unexpected, {len(shapes)} of another shape)"
        )


def fill(module: nn.Module, saved: Mapping[str, Tensor], path: str) -> None:
    """Load a state dict with a precise error; weights are cast to the module's precision.

    Args:
        module: all of its parameters and buffers are filled.
        saved: tensors by name.
        path: the file, for the error.

    Raises:
        ValueError: see `check_fit`; `module` is unchanged.
    """
    check_fit(module, saved, path)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(saved[name])
