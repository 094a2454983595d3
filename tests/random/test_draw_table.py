"""A plan's draws are those of plain keys, in few operations, whatever was asked for before."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sslzoo.random import Keys, sample_keys
from sslzoo.random.draw_table import DrawTable
from tests.no_sync import Operations

DRAWS: dict[str, Callable[[Keys], Tensor]] = {
    "uniform": lambda keys: keys.uniform("a", 2, 3),
    "scaled": lambda keys: keys.uniform("a", 2, low=-1, high=3),
    "other shape": lambda keys: keys.uniform("a", 4),
    "one": lambda keys: keys.uniform("b"),
    "deeper": lambda keys: keys.fold("op", 3).bernoulli("a", 0.5),
    "normal": lambda keys: keys.fold("op", 2**63 + 5).normal("n", 3),
    "permutation": lambda keys: keys.permutation("p", 6),
    "integers": lambda keys: keys.integers("i", 10, 2),
    "key": lambda keys: keys.fold("view", 1).key,
    "tensor": lambda keys: keys.fold("x").fold(keys.key).uniform("a"),
    "rows of rows": lambda keys: keys.rows(slice(1, 4)).rows(slice(1, 3)).fold("x").uniform("a"),
    "rows": lambda keys: keys.fold("op", 0).rows(slice(1, 3)).uniform("a", 2),
}


def _keys(epoch: int) -> Keys:
    return sample_keys(5, epoch, torch.tensor([3, 1, 4, 1]))


def test_draws_are_those_of_plain_keys() -> None:
    plan = DrawTable()
    orders = [list(DRAWS), list(DRAWS)[::-1], list(DRAWS)[3:], list(DRAWS)]
    for epoch, names in enumerate(orders):
        keys = plan.keys(_keys(epoch))
        for name in names:
            assert torch.equal(DRAWS[name](keys), DRAWS[name](_keys(epoch))), name


def test_folding_each_is_folding_one_by_one() -> None:
    together = _keys(0).fold_each("view", 3)
    assert torch.equal(together.key, torch.cat([_keys(0).fold("view", i).key for i in range(3)]))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_start_anew(again: Callable[[DrawTable], DrawTable]) -> None:
    plan = DrawTable()
    for _ in range(2):
        plan.keys(_keys(0)).uniform("a")
    assert torch.equal(again(plan).keys(_keys(1)).uniform("a"), _keys(1).uniform("a"))


def test_more_draws_take_hardly_more_operations() -> None:
    def operations(draws: int) -> int:
        plan = DrawTable()
        for epoch in range(3):
            with Operations() as made:
                keys = plan.keys(_keys(epoch))
                for i in range(draws):
                    keys.fold("op", i).uniform("a")
        return made.count

    few, many = operations(2), operations(50)
    assert few < 90
    assert many == few  # a draw is a look into the table
