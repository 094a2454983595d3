"""Building: an encoder of a class path, filled with weights whose names and shapes are checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import jsonargparse
import torch
from torch import Tensor, nn

# What a file that came from elsewhere may name.
KNOWN_PACKAGES = ("sslzoo.", "torch.nn.", "torch.optim.", "torchvision.models.")


def build_backbone(backbone: Mapping[str, Any]) -> nn.Module:
    """The module of `class_path` and `init_args`, as the command builds it.

    It draws its initial weights from a generator of its own.

    Raises:
        ValueError: there is no such class, it gives no nn.Module, or it takes other arguments.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=nn.Module)
    try:
        parsed = parser.parse_object({"backbone": copy.deepcopy(dict(backbone))})  # it changes it
        with torch.random.fork_rng(devices=[]):
            made: nn.Module = parser.instantiate(parsed)["backbone"]
    except (jsonargparse.ArgumentError, TypeError) as error:
        text = str(error).strip()
        raise ValueError(f"no backbone {backbone.get('class_path')!r}: {text}") from None
    return made


def refuse_unknown_classes(named: Any, where: str) -> None:
    """Let a file from elsewhere name classes of few packages only.

    Args:
        named: dictionaries and lists in which class paths stand under `class_path`.
        where: it comes from, for the error.

    Raises:
        ValueError: a class path is of another package.
    """
    if isinstance(named, Mapping):
        for key, value in named.items():
            if key in ("class_path", "_class_path") and not str(value).startswith(KNOWN_PACKAGES):
                raise ValueError(
                    f"{where} names the class {value!r}; a file from elsewhere may name those of "
                    f"{', '.join(KNOWN_PACKAGES)} only: download it and load it from the disk"
                )
            refuse_unknown_classes(value, where)
    elif isinstance(named, list | tuple):
        for value in named:
            refuse_unknown_classes(value, where)


def complete(state: Mapping[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """With the batch norms' step counts as they are where a file, old or not torch's, has none."""
    counts = {
        name: value
        for name, value in encoder.state_dict().items()
        if name.endswith(".num_batches_tracked")
    }
    return {**counts, **state}
