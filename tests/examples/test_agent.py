"""The agent of examples/agent.py: its estimates, its memory, and a few of its steps."""

from __future__ import annotations

import math

import pytest
import torch

from examples.agent import DISCOUNT, TRACE, Memory, Rollout, advantages, by_part, train


def test_advantages_are_those_worked_by_hand() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 1.0, 1.5]])
    ended, last = torch.tensor([[False, True, False]]), torch.tensor([4.0])
    third = 3 + DISCOUNT * 4 - 1.5
    second = 2 - 1.0  # the episode ends: nothing follows
    first = 1 + DISCOUNT * 1.0 - 0.5 + DISCOUNT * TRACE * second
    found = advantages(rewards, values, ended, last)
    torch.testing.assert_close(found, torch.tensor([[first, second, third]]))


def test_an_episode_does_not_remember_the_one_before() -> None:
    torch.manual_seed(0)
    memory, values = Memory(2), torch.randn(1, 5, 2)
    first = torch.tensor([[False, False, True, False, False]])
    state = torch.zeros(1, 64)
    z, c = memory.forward_parts(Rollout(values, first, state))
    fresh = memory.forward_parts(Rollout(values[:, 2:], first[:, 2:], torch.randn(1, 64)))[1]
    torch.testing.assert_close(c[:, 2:], fresh)
    torch.testing.assert_close(c[:, :2], memory.context(z[:, :2]))  # the GRU's own steps


def test_returns_are_averaged_by_tenth() -> None:
    found = by_part([(0, 1.0), (9, 3.0), (10, 5.0), (99, 7.0)], 100)
    assert found[:2] == [2.0, 5.0]
    assert found[-1] == 7.0
    assert all(math.isnan(value) for value in found[2:-1])


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_training_is_repeatable(weight: float) -> None:
    pytest.importorskip("gymnasium")
    one, two = (train("CartPole-v1", 0, weight, 2560) for _ in range(2))
    assert one == pytest.approx(two, rel=1e-6, nan_ok=True)
    assert 5 < one[-1] < 500
