"""Every form of every method: each value of a bool or Literal argument, found by itself.

A form other than the default trains, is the same on two ranks as on one, and goes on after it was
saved and loaded. Arguments that take numbers or objects have their forms in `FURTHER`.
"""

from __future__ import annotations

import copy
import inspect
import typing
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.callbacks.gram import GramAnchoring
from sslzoo.distributed import sum_over_ranks, world_size
from sslzoo.heads import DINOHead, Prototypes
from sslzoo.masks import MultiBlock
from sslzoo.memory import commit_memories
from sslzoo.methods import CMC, IBOT, IJEPA, DINOv2, SSLMethod
from tests.ranks import Ranks
from tests.toys import KINDS, build, data_like, every_method, rows

Form = tuple[type[SSLMethod], dict[str, Any]]
SAMPLES = 12
# What an argument needs besides the example of its method.
NEEDS: dict[str, dict[str, Any]] = {
    "transposed": {"layer_norm": "group"},
    "teacher_shares_prototypes": {"patch_prototypes": Prototypes(6, 10)},
}
FURTHER: list[Form] = [
    (CMC, {"memory": "queue", "softmax": True, "momentum": 0.5}),
    (CMC, {"positions": 3, "bank_size": None}),
    (DINOv2, {"patch_projector": DINOHead(16, 8, 10, 7), "centering": "sinkhorn"}),
    (DINOv2, {"gram": GramAnchoring(), "koleo_weight": 0.0}),
    (DINOv2, {"gram": GramAnchoring(level="batch", patches="masked", from_step=1)}),
    (IBOT, {"cls_weight": 0.5, "patch_weight": 2.0, "patch_center_momentum": 0.5}),
    (IBOT, {"patch_prototypes": Prototypes(6, 7, fixed_length=False)}),
    (IJEPA, {"masks": MultiBlock(2, min_keep=2, num_contexts=2)}),
    (IJEPA, {"masks": MultiBlock(2, min_keep=2, num_contexts=3, allow_overlap=True)}),
]


def forms_of(cls: type[SSLMethod]) -> list[Form]:
    """The method with one argument at a value that is not its default."""
    found: list[Form] = []
    hints = typing.get_type_hints(cls.__init__)
    for name, parameter in inspect.signature(cls).parameters.items():
        hint = hints[name]
        literal = typing.get_origin(hint) is typing.Literal
        values = typing.get_args(hint) if literal else (True, False) if hint is bool else ()
        others = [value for value in values if value != parameter.default]
        found += [(cls, {name: value, **NEEDS.get(name, {})}) for value in others]
    return found


FORMS = [form for cls in every_method() for form in forms_of(cls)] + FURTHER


def made(form: Form, seed: int = 0) -> tuple[Any, Batch]:
    cls, changes = form
    method, batch = build(cls, seed, **copy.deepcopy(changes))
    return method.double(), data_like(batch, SAMPLES)


def train(rank: int, form: Form) -> dict[str, Any]:
    """Two steps on this rank's share: their losses, the last gradients and the final state."""
    method, data = made(form)
    mine = rows(data, torch.arange(SAMPLES).chunk(world_size())[rank])
    losses = [step(method, mine) for _ in range(2)]
    gradients = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    return {"losses": losses, "gradients": gradients, "state": method.state_dict()}


def step(method: Any, batch: Batch) -> Tensor:
    """A plain step of gradient descent; the mean of the ranks' losses."""
    method.zero_grad()
    loss = torch.stack(list(method.losses(batch).values())).sum()
    loss.backward()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter.grad = sum_over_ranks(parameter.grad) / world_size()
                parameter -= 0.05 * parameter.grad
        for student, teacher in method.teacher_pairs():
            for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                theirs.lerp_(ours, 0.1)
    commit_memories(method)
    method.step += 1
    return sum_over_ranks(loss.detach()) / world_size()


def name(form: Form) -> str:
    cls, changes = form
    return f"{cls.__name__}-{'-'.join(changes)}"


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            form, id=name(form), marks=() if form[0].__name__ in KINDS else pytest.mark.slow
        )
        for form in FORMS
    ],
)
def test_two_ranks_equal_one_and_a_saved_form_goes_on(form: Form, ranks: Ranks) -> None:
    one = train(0, form)
    for two in ranks(2, train, form):
        torch.testing.assert_close(two, one, rtol=1e-7, atol=1e-10)
    other, data = made(form, seed=1)
    other.load_state_dict(one["state"])
    method, _ = made(form)
    method.load_state_dict(one["state"])
    method.step = other.step = 2
    assert step(method, data) == step(other, data)
