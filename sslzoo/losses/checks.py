"""Checks of the arguments that the losses share."""

from __future__ import annotations

from torch import Tensor


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless the value is above 0."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def check_same_shape(names: str, x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless both tensors are (n, D) of the same shape."""
    if x.dim() != 2 or x.shape != y.shape:
        raise ValueError(f"{names} must be (n, D) tensors of the same shape, got {shapes(x, y)}")


def shapes(*tensors: Tensor | None) -> str:
    """Shapes for an error: "(4, 3), (4, 2) and None"."""
    *first, last = ["None" if x is None else str(tuple(x.shape)) for x in tensors]
    return f"{', '.join(first)} and {last}" if first else last
