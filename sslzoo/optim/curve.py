"""Curves: values that change with the optimizer step (momentum, temperature, weight decay).

A curve is called with the number of optimizer steps taken so far and the run's `Horizon`, both
of which `SSLMethod` saves in its checkpoints; so a resumed run goes on along the same curve.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple


class Horizon(NamedTuple):
    """How long a run is meant to be.

    Args:
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one epoch (after accumulation).
    """

    total_steps: int
    steps_per_epoch: int

    def fraction(self, step: int) -> float:
        """How much of the run is over before step `step`, in [0, 1]."""
        return min(1.0, step / max(1, self.total_steps))


class Curve(ABC):
    """A value for each optimizer step: `curve(step, horizon)`, step counted from 0."""

    @abstractmethod
    def __call__(self, step: int, horizon: Horizon) -> float: ...


class Constant(Curve):
    """The same value at every step."""

    def __init__(self, value: float):
        self.value = value

    def __call__(self, step: int, horizon: Horizon) -> float:
        return self.value


def as_curve(value: Curve | float) -> Curve:
    """A curve as it is; a number as `Constant`: what can be written as plain values stays so."""
    return value if isinstance(value, Curve) else Constant(value)


class Cosine(Curve):
    """Half a cosine from `start` at step 0 to `end` at the last step of the horizon.

    BYOL's target momentum is Cosine(0.996, 1.0): tau = 1 - (1 - tau0)(cos(pi k/K) + 1)/2.
    """

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end

    def __call__(self, step: int, horizon: Horizon) -> float:
        remaining = (math.cos(math.pi * horizon.fraction(step)) + 1) / 2
        return self.end + (self.start - self.end) * remaining


class Linear(Curve):
    """A straight line from `start` to `end` over some epochs or the run, else constant.

    DINO's teacher temperature, a linspace over its first n epochs, is
    Linear(0.04, 0.07, epochs=n - 1, every="epoch"): the n-th epoch has the end value.

    Args:
        start: value at the beginning.
        end: value after `delay + epochs`.
        epochs: length of the line; None: to the end of the horizon, as I-JEPA's momentum.
        every: "step", or "epoch": constant within an epoch.
        delay: epochs before the line begins.
    """

    def __init__(
        self,
        start: float,
        end: float,
        epochs: float | None = None,
        every: Literal["step", "epoch"] = "step",
        delay: float = 0.0,
    ):
        self.start, self.end, self.epochs = start, end, epochs
        self.every, self.delay = every, delay

    def __call__(self, step: int, horizon: Horizon) -> float:
        if self.every == "epoch":
            step -= step % horizon.steps_per_epoch
        delay = self.delay * horizon.steps_per_epoch
        length = horizon.total_steps - delay
        if self.epochs is not None:
            length = self.epochs * horizon.steps_per_epoch
        done = min(1.0, max(0.0, step - delay) / max(1.0, length))
        return self.start + (self.end - self.start) * done
