"""Toy instances of every method, from the example in its own docstring.

The battery finds a class in sslzoo.methods or sslzoo.eval and runs the `Example:` of its docstring:
it defines `method` and a `batch` whose shapes and types the battery imitates with data of its own.
"""

from __future__ import annotations

import doctest
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import sslzoo.eval
import sslzoo.methods
from sslzoo.batch import Batch
from sslzoo.methods import SSLMethod
from sslzoo.trainable import Trainable


def every_method() -> list[type[SSLMethod]]:
    """All public methods, by name."""
    classes = [getattr(sslzoo.methods, name) for name in sslzoo.methods.__all__]
    return [cls for cls in classes if issubclass(cls, SSLMethod) and not inspect.isabstract(cls)]


def every_trainable() -> list[type[Trainable]]:
    """All methods, and the modules of `sslzoo.eval` that train with or after them."""
    classes = [getattr(sslzoo.eval, name) for name in sslzoo.eval.__all__]
    downstream = [cls for cls in classes if inspect.isclass(cls) and issubclass(cls, Trainable)]
    return [*every_method(), *downstream]


# One of each kind of state, randomness and network. The slow batteries run on them in CI, and on
# the others, whose state is made of the same parts, before a release (`pytest -m slow`).
KINDS = (
    *("BYOL", "CLEAR", "CMC", "CPC", "DINO", "DINOv2", "DeepClusterV2", "Distill", "FineTune"),
    *("InstDisc", "LeJEPA", "MAE", "MSN", "MoCo", "SwAV", "TiCo", "VICRegL"),
)


def one_of_each_kind(classes: Sequence[type[Trainable]]) -> pytest.MarkDecorator:
    """Parametrize `cls`; those that are not of `KINDS` are slow."""
    marks = [() if cls.__name__ in KINDS else pytest.mark.slow for cls in classes]
    cases = [
        pytest.param(cls, marks=mark, id=cls.__name__)
        for cls, mark in zip(classes, marks, strict=True)
    ]
    return pytest.mark.parametrize("cls", cases)


def build(cls: type[Trainable], seed: int = 0, **changes: Any) -> tuple[Any, Batch]:
    """The module and the batch of the class's own example, with other arguments if given."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(cls) or "")
    assert examples, f"{cls.__name__} has no Example in its docstring: the batteries run it"
    space = dict(vars(sys.modules[cls.__module__]))

    def changed(*args: Any, **own: Any) -> Any:
        named = inspect.signature(cls).bind_partial(*args, **own).arguments
        return cls(**{**named, **changes})

    if changes:
        space[cls.__name__] = changed
    torch.manual_seed(seed)
    for example in examples:
        if "losses(" not in example.source:
            exec(compile(example.source, f"<example of {cls.__name__}>", "single"), space)
    assert {"method", "batch"} <= space.keys(), "an Example defines `method` and `batch`"
    return space["method"], space["batch"]


def data_like(batch: Batch, samples: int, num_classes: int = 3, seed: int = 1) -> Batch:
    """`samples` samples of the example's shapes and types; float64 where it has floats."""
    generator = torch.Generator().manual_seed(seed)

    def imitate(view: Tensor) -> Tensor:
        shape = (samples, *view.shape[1:])
        if view.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=torch.float64)
        low, high = int(view.min()), int(view.max()) + 1  # a sequence may need some length
        return torch.randint(low, high, shape, generator=generator, dtype=view.dtype)

    views = [
        imitate(view) if isinstance(view, Tensor) else type(view)(*map(imitate, view))
        for view in batch.views
    ]
    label = torch.randint(0, num_classes, (samples,), generator=generator)
    boxes = None if batch.boxes is None else batch.boxes[torch.arange(samples) % len(batch.boxes)]
    return Batch(views, torch.arange(samples), label, boxes)


def rows(batch: Batch, which: slice | Tensor) -> Batch:
    """A part of a batch."""
    views = [
        view[which] if isinstance(view, Tensor) else type(view)(*(part[which] for part in view))
        for view in batch.views
    ]
    label, boxes = (None if x is None else x[which] for x in (batch.label, batch.boxes))
    return Batch(views, batch.index[which], label, boxes)


class Pooled(torch.nn.Module):
    """The smallest image backbone of any width: mean over pixels, then a Linear."""

    def __init__(self, num_features: int, in_chans: int = 3) -> None:
        super().__init__()
        self.num_features = num_features
        self.linear = torch.nn.Linear(in_chans, num_features)

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        image = x if isinstance(x, Tensor) else torch.cat(x, dim=1)
        return self.linear(image.mean((2, 3)))
