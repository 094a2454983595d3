"""EMA: each optimizer step moves the teacher once, by the momentum of that step's index."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from sslzoo.callbacks import EMA
from sslzoo.methods import BYOL
from sslzoo.optim import RunLength, Schedule
from tests.test_every_method import batches, fit, toy, trainer


class Asked(Schedule):
    """A momentum of 0.9 that keeps the steps it was called with."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, step: int, run_length: RunLength) -> float:
        self.steps.append(step)
        return 0.9


class Watched(BYOL):
    def configure_callbacks(self) -> list[Any]:
        return []


@pytest.mark.parametrize("when", ["after_step", "before_forward"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_step_uses_the_momentum_of_its_index(
    when: Literal["after_step", "before_forward"], accumulate: int
) -> None:
    method, data = toy(BYOL)
    method.__class__ = Watched
    before = [p.clone() for _, teacher in method.teacher_pairs() for p in teacher.parameters()]
    momentum = Asked()
    run = trainer(2, devices=1, callbacks=[EMA(momentum, when)], accumulate_grad_batches=accumulate)
    fit(run, method, batches(data, 6, 0, 1))
    assert method.step == 12 // accumulate
    assert momentum.steps == [0, *range(method.step)]  # once more before the first step
    after = [p for _, teacher in method.teacher_pairs() for p in teacher.parameters()]
    moved: list[Tensor] = [(a - b).abs().max() for a, b in zip(after, before, strict=True)]
    assert torch.stack(moved).max() > 0
