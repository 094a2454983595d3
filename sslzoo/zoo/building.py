"""Building: an encoder of a class path, filled with weights whose names and shapes are checked."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import jsonargparse
import torch
from torch import Tensor, nn

from sslzoo.zoo.reading import tensors_by_name

# What a file that came from elsewhere may name. Not `sslzoo.load`: it would load a further file.
KNOWN_PACKAGES = (
    *(f"sslzoo.{p}." for p in ("backbones", "data", "eval", "heads", "methods", "optim")),
    "sslzoo.transforms.",
    *("torch.nn.", "torch.optim.", "torchvision.models."),
)
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # in every checkpoint of the command
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


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
    """Let a file from elsewhere name classes and functions of few packages only.

    Class paths stand under `class_path`, but jsonargparse takes a bare string for one as well: so
    every string counts that could be imported.

    Args:
        named: dictionaries and lists of plain values.
        where: it comes from, for the error.

    Raises:
        ValueError: a name is of another package.
    """
    if isinstance(named, Mapping):
        for key, value in named.items():
            if key in ("class_path", "_class_path"):
                _refuse_unknown(str(value), where)
            refuse_unknown_classes(value, where)
    elif isinstance(named, list | tuple):
        for value in named:
            refuse_unknown_classes(value, where)
    elif isinstance(named, str) and _importable(named):
        _refuse_unknown(named, where)


def _importable(text: str) -> bool:
    """Whether it is a dotted name of an installed package; timm's `resnet50.a1_in1k` is not."""
    first = text.partition(".")[0]
    return bool(_DOTTED.fullmatch(text)) and importlib.util.find_spec(first) is not None


def _refuse_unknown(name: str, where: str) -> None:
    if name == INSTANTIATOR or name.startswith(KNOWN_PACKAGES):
        return
    raise ValueError(
        f"{where} names the class {name!r}; a file from elsewhere may name those of "
        f"{', '.join(KNOWN_PACKAGES)} only: download it and load it from the disk"
    )


def complete(state: Mapping[str, Tensor], encoder: nn.Module, path: str) -> dict[str, Tensor]:
    """The state with the batch norms' step counts as they are, where the file has none of them.

    Files that are old or not torch's have no such counts.

    Args:
        state: a tensor for each name.
        encoder: what it is to fill.
        path: where it comes from, for the error.

    Raises:
        ValueError: the file holds no state, or deeper within, where only a layout finds it; or
            whole numbers where the encoder has floats, or the other way round.
    """
    state = tensors_by_name(state, f"{path!r}: without a layout a file")
    own = encoder.state_dict()
    wrong = [
        f"{name}: {state[name].dtype} for {value.dtype}"
        for name, value in own.items()
        if name in state and _kind(state[name]) != _kind(value)
    ]
    if wrong:
        raise ValueError(
            f"{path!r} does not fit {type(encoder).__name__}: {len(wrong)} of {len(own)} tensors "
            f"have floats for whole numbers or the other way round, such as {wrong[:3]}"
        )
    counts = {n: value for n, value in own.items() if n.endswith(".num_batches_tracked")}
    return {**({} if counts.keys() & state.keys() else counts), **state}


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "float"
    return "complex" if tensor.is_complex() else "integer"
