"""Checks of arguments, with one wording for the errors of all constructors."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: names the argument, the choices and the value.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")


def check_view_kinds(sizes: object, counts: object, scales: object) -> None:
    """Refuse lists that do not have one entry per kind of view, or that are no lists.

    Raises:
        ValueError: names the arguments and what they are.
    """
    lists = [given for given in (sizes, counts, scales) if isinstance(given, list | tuple)]
    if len(lists) < 3 or not len(lists[0]) == len(lists[1]) == len(lists[2]) >= 1:
        raise ValueError(
            "sizes, counts and scales must be lists with one entry per kind of view, got "
            f"{sizes}, {counts} and {scales}"
        )


def check_at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below `least`.

    Raises:
        ValueError: names the argument, the bound and the value.
    """
    _check_number(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse all but a whole number of at least `least`.

    Raises:
        ValueError: names the argument, the bound and the value.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    check_at_least(name, int(value), least)


def check_interval(name: str, value: float, low: float, high: float, ends: str = "[]") -> None:
    """Refuse a number outside an interval, whose ends are open, "(" and ")", or closed.

    Raises:
        ValueError: names the argument, the interval and the value.
    """
    _check_number(name, value)
    above = low <= value if ends[0] == "[" else low < value
    below = value <= high if ends[1] == "]" else value < high
    if not (above and below):
        raise ValueError(f"{name} must be in {ends[0]}{low}, {high}{ends[1]}, got {value}")


def check_classes(who: str, label: Tensor | None) -> Tensor:
    """Labels (B,) or (B, 1) of any dtype as classes (B,) int64.

    Raises:
        ValueError: there is not one class per sample; names who needs them.
    """
    if label is not None and label.ndim == 2 and label.shape[1] == 1:
        label = label[:, 0]
    if label is None or label.ndim != 1:
        raise ValueError(
            f"labels must be (B,), one class per sample, for {who}, got {shapes(label)}"
        )
    return label.long()


def check_labeled(names: str, rows: Tensor, labels: Tensor) -> None:
    """Refuse shapes other than (n, D) and (n,).

    Raises:
        ValueError: names both tensors and their shapes.
    """
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise ValueError(f"{names} must be (n, D) and (n,), got {shapes(rows, labels)}")


def check_num_features(module: object, role: str) -> int:
    """The `num_features` of a module, such as an encoder.

    Raises:
        ValueError: it has no such int.
    """
    width = getattr(module, "num_features", None)
    if not isinstance(width, int):
        raise ValueError(
            f"num_features of the {role} must be an int, got {width!r} of {type(module).__name__}"
        )
    return width


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless the value is above 0."""
    _check_number(name, value)
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def _check_number(name: str, value: object) -> None:
    if value is None or isinstance(value, str | list | tuple | dict):
        raise ValueError(f"{name} must be a number, got {value!r}")


def check_block(width: int, num_heads: int, mlp_ratio: float) -> None:
    """Refuse sizes of a Transformer block that leave a fraction of a head, or no hidden unit.

    Raises:
        ValueError: names the size, and the width.
    """
    if width % num_heads:
        raise ValueError(f"width must be a multiple of num_heads {num_heads}, got {width}")
    check_positive("mlp_ratio", mlp_ratio)
    if mlp_ratio == math.inf or int(width * mlp_ratio) < 1:
        raise ValueError(
            f"mlp_ratio must be finite and at least 1 / {width}, for one hidden unit, got "
            f"{mlp_ratio}"
        )


def check_sides(name: str, value: object) -> tuple[int, int]:
    """Height and width, from the side of a square or from both.

    Raises:
        ValueError: it is neither a whole number above 0 nor two of them.
    """
    sides = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(sides, tuple | list)
        or len(sides) != 2
        or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in sides)
    ):
        raise ValueError(
            f"{name} must be a whole number above 0, or two of them (height, width), got {value!r}"
        )
    return sides[0], sides[1]


def as_side(sides: tuple[int, int]) -> int | tuple[int, int]:
    """The shortest form of height and width: one number for a square."""
    return sides[0] if sides[0] == sides[1] else sides


def check_same_shape(names: str, x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless both tensors are (n, D) of the same shape."""
    if x.dim() != 2 or x.shape != y.shape:
        raise ValueError(f"{names} must be (n, D) tensors of the same shape, got {shapes(x, y)}")


def shapes(*tensors: Tensor | None) -> str:
    """Shapes for an error: "(4, 3), (4, 2) and None"."""
    *first, last = ["None" if x is None else str(tuple(x.shape)) for x in tensors]
    return f"{', '.join(first)} and {last}" if first else last
