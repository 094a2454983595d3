"""Every default that config.yaml would have to hold can be written there and read back."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from sslzoo.masks import MultiBlock
from sslzoo.optim import (
    ConstantSchedule,
    CosineSchedule,
    ExponentialSchedule,
    LinearBySteps,
    LinearSchedule,
    RunLength,
    Schedule,
    StretchedSchedule,
    as_schedule,
)
from sslzoo.trainable import Trainable
from tests.toys import build, every_method

ROOMS = ("methods", "heads", "backbones", "transforms", "data", "eval", "callbacks", "optim")


def public() -> Iterator[tuple[str, Any]]:
    """Every public class and function that a config can name."""
    for room in ROOMS:
        module = importlib.import_module(f"sslzoo.{room}")
        for name in module.__all__:
            member = getattr(module, name)
            if callable(member) and not (inspect.isclass(member) and issubclass(member, Warning)):
                yield f"{room}.{name}", member


def is_named(value: Any) -> bool:
    """Whether a class or function is what its full name leads to."""
    found: Any = importlib.import_module(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def is_writable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_writable, (*value, *value.values())))
    if isinstance(value, tuple | list):
        return all(map(is_writable, value))
    if inspect.isclass(value) or inspect.isfunction(value):
        return is_named(value)
    return isinstance(value, bool | int | float | str | None)


@pytest.mark.parametrize(("name", "member"), [pytest.param(*x, id=x[0]) for x in public()])
def test_defaults_can_be_written(name: str, member: Any) -> None:
    for argument in inspect.signature(member).parameters.values():
        if argument.default is not inspect.Parameter.empty:
            assert is_writable(argument.default), f"{name}({argument.name}={argument.default!r})"


def test_an_object_is_no_plain_default() -> None:
    for value in (
        ConstantSchedule(0.5),
        MultiBlock(),
        lambda x: x,
        [ConstantSchedule(1.0)],
        {"a": object()},
    ):
        assert not is_writable(value)


# Where the default is None or a number, the curve of the paper.
CURVES: dict[str, dict[str, Schedule]] = {
    "BYOL": {"momentum": CosineSchedule(0.996, 1.0)},
    "BYOLA": {"momentum": ConstantSchedule(0.99)},
    "DINO": {"momentum": CosineSchedule(0.996, 1.0), "teacher_temperature": ConstantSchedule(0.04)},
    "Data2Vec": {"momentum": LinearBySteps(0.999, 0.9999, 30_000, first_step=1)},
    "DenseCL": {"momentum": ConstantSchedule(0.999)},
    "DINOv2": {
        "momentum": CosineSchedule(0.992, 1.0),
        "teacher_temperature": ConstantSchedule(0.07),
    },
    "IBOT": {
        "momentum": CosineSchedule(0.996, 1.0),
        "teacher_temperature": ConstantSchedule(0.04),
        "teacher_patch_temperature": ConstantSchedule(0.04),
    },
    "IJEPA": {"momentum": LinearSchedule(0.996, 1.0)},
    "MSN": {
        "momentum": StretchedSchedule(LinearSchedule(0.996, 1.0), 1.25),
        "sharpening": ConstantSchedule(0.25),
    },
    "MoCo": {"momentum": ConstantSchedule(0.999)},
    "MoCoV3": {"momentum": CosineSchedule(0.99, 1.0)},
    "ReSSL": {"momentum": ConstantSchedule(0.999)},
    "TiCo": {"momentum": CosineSchedule(0.99, 1.0)},
    "Wav2Vec2": {"quantizer_temperature": ExponentialSchedule(2.0, 0.5, 0.999995)},
}


@pytest.mark.parametrize("cls", every_method(), ids=lambda cls: cls.__name__)
def test_defaults_of_curves_are_the_papers(cls: type[Trainable]) -> None:
    method, _ = build(cls)
    found = {name: value for name, value in vars(method).items() if isinstance(value, Schedule)}
    wanted = CURVES.get(cls.__name__, {})
    assert found.keys() == wanted.keys()
    run_length = RunLength(100, 10)
    for name, curve in wanted.items():
        for step in (0, 1, 37, 99, 100):
            assert found[name](step, run_length) == curve(step, run_length), name


def test_number_is_a_constant_curve() -> None:
    curve = as_schedule(0.3)
    assert [curve(step, RunLength(10, 5)) for step in (0, 5, 10)] == [0.3] * 3
    assert as_schedule(curve) is curve
