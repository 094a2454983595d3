"""Renamed classes and arguments: names of version 0.1 and their current names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CLASSES = {
    "sslzoo.multi_block.MultiBlock": "sslzoo.masks.MultiBlock",
    "sslzoo.optim.Constant": "sslzoo.optim.ConstantSchedule",
    "sslzoo.optim.ConstantRate": "sslzoo.optim.WarmupConstant",
    "sslzoo.optim.Cosine": "sslzoo.optim.CosineSchedule",
    "sslzoo.optim.Linear": "sslzoo.optim.LinearSchedule",
    "sslzoo.optim.Steps": "sslzoo.optim.StepSchedule",
    "sslzoo.transforms.BlockMasks": "sslzoo.masks.BlockMasks",
}
_ARGUMENTS = {
    "horizon_on_resume": "run_length_on_resume",
    "normalise_pixels": "normalize_pixels",
    "standardise": "standardize",
}


def renamed_class(name: Any) -> Any:
    """Current name of a class of this library; other names are returned unchanged."""
    return _CLASSES.get(name, name) if isinstance(name, str) else name


def renamed_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the arguments of a class of this library to their current names."""
    return {_ARGUMENTS.get(name, name): value for name, value in arguments.items()}
