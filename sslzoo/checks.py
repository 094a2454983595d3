"""Checks of arguments, with one wording for the errors of all constructors."""

from __future__ import annotations

from collections.abc import Collection


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: names the argument, the choices and the value.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below `least`.

    Raises:
        ValueError: names the argument, the bound and the value.
    """
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_interval(name: str, value: float, low: float, high: float, ends: str = "[]") -> None:
    """Refuse a number outside an interval, whose ends are open, "(" and ")", or closed.

    Raises:
        ValueError: names the argument, the interval and the value.
    """
    above = low <= value if ends[0] == "[" else low < value
    below = value <= high if ends[1] == "]" else value < high
    if not (above and below):
        raise ValueError(f"{name} must be in {ends[0]}{low}, {high}{ends[1]}, got {value}")


def check_num_features(module: object, role: str) -> int:
    """The `num_features` of a module, such as an encoder.

    Raises:
        ValueError: it has no such int.
    """
    width = getattr(module, "num_features", None)
    if not isinstance(width, int):
        raise ValueError(
            f"num_features of the {role} must be an int, {type(module).__name__} has {width!r}"
        )
    return width
