"""The battery that every method enters by itself: equivalence, gradients, labels.

Toy nets in float64 through a real Trainer; two ranks are real gloo ranks under DDP, with
different data.
"""

from __future__ import annotations

import doctest
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.memory import memories
from sslzoo.methods import SSLMethod
from sslzoo.optim import WarmupCosine
from sslzoo.trainable import Trainable
from tests.ranks import Ranks
from tests.toys import build, data_like, every_method, every_trainable, one_of_each_kind, rows

METHODS, TRAINABLES = every_method(), every_trainable()
BATCH, SAMPLES = 12, 36

THIRD_PARTY = (
    # Lightning reads a deprecated attribute of torch's itself.
    "`isinstance(treespec, LeafSpec)` is deprecated",
)


def fit(run: Trainer, method: Trainable, data: list[Batch], ckpt_path: str | None = None) -> None:
    with warnings.catch_warnings():
        for message in THIRD_PARTY:
            warnings.filterwarnings("ignore", message=re.escape(message))
        run.fit(method, Loader(data), Loader(data[:1]), ckpt_path=ckpt_path, weights_only=True)


def battery(classes: Sequence[type[Trainable]] = METHODS) -> Any:
    return pytest.mark.parametrize("cls", classes, ids=lambda cls: cls.__name__)


class Gradients(Callback):
    """Keeps the gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if not self.first:
            self.first = {
                name: p.grad.clone()
                for name, p in pl_module.named_parameters()
                if p.grad is not None
            }


def toy(cls: type[Trainable]) -> tuple[Any, Batch]:
    """Double-precision toy with an optimizer, and its training set."""
    method, batch = build(cls)
    method._optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
    method._schedule = WarmupCosine(warmup_epochs=1)
    return method.double(), data_like(batch, SAMPLES)


class Loader:
    """A list of ready batches; Lightning takes a bare list for several loaders."""

    def __init__(self, content: list[Batch]) -> None:
        self.content = content

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)


def batches(data: Batch, size: int, rank: int, world: int) -> list[Batch]:
    """This rank's contiguous share of every global batch of `size` samples."""
    share = size // world
    starts = range(0, SAMPLES - size + 1, size)
    return [rows(data, slice(s + rank * share, s + (rank + 1) * share)) for s in starts]


def trainer(epochs: int = 2, **options: Any) -> Trainer:
    return Trainer(
        **{"accelerator": "cpu", **options},
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )


def state(method: Trainable) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def train(
    rank: int, cls: type[Trainable], world: int, accumulate: int, **changes: Any
) -> dict[str, Any]:
    """Two epochs of two steps on this rank's share: loss, first gradients, final state.

    Args:
        changes: of the Trainer's options.
    """
    torch.manual_seed(0)
    method, data = toy(cls)
    gradients = Gradients()
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate, "devices": 1}
    if world > 1:
        options |= {"devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    run = trainer(callbacks=[gradients], **{**options, **changes})
    share = batches(data, BATCH // accumulate, rank, world)[: 2 * accumulate]
    fit(run, method, share)
    return {
        "loss": run.callback_metrics["train/loss"],
        "gradients": gradients.first,
        "state": state(method),
        "step": method.step,
    }


def assert_same(actual: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@battery(TRAINABLES)
def test_two_ranks_equal_one(cls: type[Trainable], ranks: Ranks) -> None:
    """With two batches a step: what holds for them holds for one."""
    one = train(0, cls, 1, 2)
    two = ranks(2, train, cls, 2, 2)
    assert one["step"] == two[0]["step"] == 4
    for result in two:
        assert_same(result["gradients"], one["gradients"])
        assert_same(result["state"], one["state"])
        torch.testing.assert_close(result["loss"], one["loss"], rtol=1e-6, atol=0)  # float32 log


@battery(TRAINABLES)
def test_gradients_reach_what_trains_and_nothing_else(cls: type[Trainable]) -> None:
    method, data = toy(cls)
    for _ in range(3):
        terms = method.losses(rows(data, slice(0, BATCH)))
        loss = torch.stack(list(terms.values())).sum()
        assert loss.isfinite()
        assert loss.ndim == 0
        loss.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@battery([cls for cls in METHODS if hasattr(cls, "assignments")])
def test_assignments_are_probabilities(cls: type[SSLMethod]) -> None:
    method, data = toy(cls)
    p = method.eval().assignments(data.views[0])
    torch.testing.assert_close(p.sum(dim=1), torch.ones(SAMPLES, dtype=p.dtype))
    assert (p >= 0).all()


@battery()
def test_forward_gives_num_features(cls: type[SSLMethod]) -> None:
    method, batch = build(cls)  # its own samples, of which each is long enough for a frame
    features = method(batch.views[0])
    assert features.shape == (len(batch.index), method.encoder().num_features)


@battery(TRAINABLES)
def test_labels_do_not_matter_unless_declared(cls: type[Trainable]) -> None:
    def loss(labels: Tensor | None) -> Tensor:
        method, data = toy(cls)
        return torch.stack(list(method.losses(data._replace(label=labels)).values())).sum()

    _, data = toy(cls)
    if cls.uses_labels:
        assert loss(data.label) != loss(data.label.roll(1))
    else:
        assert loss(data.label) == loss(data.label.roll(1)) == loss(None)


@one_of_each_kind(TRAINABLES)
def test_same_seed_same_run(cls: type[Trainable]) -> None:
    first, second = train(0, cls, 1, 1), train(0, cls, 1, 1)
    assert all(torch.equal(first["state"][k], second["state"][k]) for k in first["state"])


@battery()
def test_teachers_start_equal_and_follow(cls: type[SSLMethod]) -> None:
    method, data = toy(cls)
    pairs = [
        (name, ours, theirs)
        for student, teacher in method.teacher_pairs()
        for (name, ours), theirs in zip(
            student.named_parameters(), teacher.parameters(), strict=True
        )
    ]
    assert bool(pairs) == hasattr(method, "momentum"), "a method with a momentum names its pairs"
    for name, ours, theirs in pairs:
        assert torch.equal(ours, theirs), name
        assert not theirs.requires_grad, name
    before = [theirs.clone() for _, _, theirs in pairs]
    run = trainer(2, devices=1, accumulate_grad_batches=2)
    fit(run, method, batches(data, BATCH, 0, 1))
    for (name, ours, theirs), start in zip(pairs, before, strict=True):
        # A bias before a batch norm has no gradient but rounding noise: neither moves.
        still = torch.allclose(ours, start, rtol=0, atol=1e-14)
        assert torch.equal(theirs, start) <= still, f"{name}: the teacher stood still"
        assert still or not torch.equal(theirs, ours), f"{name}: the teacher is the student"


@battery()
def test_a_step_never_sees_its_own_rows(cls: type[SSLMethod]) -> None:
    method, data = toy(cls)
    for memory in memories(method):
        before = [buffer.clone() for buffer in memory.buffers()]
        method.losses(rows(data, slice(0, BATCH)))
        assert all(torch.equal(a, b) for a, b in zip(before, memory.buffers(), strict=True))
        memory.commit()
        assert not all(torch.equal(a, b) for a, b in zip(before, memory.buffers(), strict=True))


@battery(TRAINABLES)
def test_example_in_the_docstring_runs(cls: type[Trainable]) -> None:
    space = dict(vars(sys.modules[cls.__module__]))
    test = doctest.DocTestFinder(recurse=False).find(cls, cls.__name__, globs=space)[0]
    assert doctest.DocTestRunner().run(test).failed == 0
