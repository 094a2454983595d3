"""Every module on every kind of batch: it trains, or refuses in one sentence before a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch, Padded, Tokens, as_batch
from sslzoo.heads import MLP
from sslzoo.methods import BYOL, SimCLR
from sslzoo.trainable import Trainable
from tests.toys import build, every_method, every_trainable

N = 4


def image(*size: int) -> Tensor:
    return torch.rand(N, 3, *size, generator=torch.Generator().manual_seed(0))


TEXT = Tokens(torch.ones(N, 5, dtype=torch.int64), torch.full((N,), 5))
# What a loader may give in the place of a method's own batch.
KINDS: dict[str, Callable[[Batch], Any]] = {
    "another size": lambda batch: with_views(batch, lambda x: image(20, 20)),
    "another size of the second": lambda batch: with_second(batch, image(20, 20)),
    "not square": lambda batch: with_views(batch, lambda x: image(8, 12)),
    "bytes": lambda batch: with_views(batch, lambda x: (image(8, 8) * 255).byte()),
    "doubles": lambda batch: with_views(batch, lambda x: image(8, 8).double()),
    "one channel": lambda batch: with_views(batch, lambda x: image(8, 8)[:, :1]),
    "sound": lambda batch: with_views(batch, lambda x: torch.rand(N, 400)),
    "frames": lambda batch: with_views(batch, lambda x: torch.rand(N, 9, 5)),
    "padded": lambda batch: with_views(
        batch, lambda x: Padded(torch.rand(N, 9), torch.full((N,), 9))
    ),
    "text": lambda batch: with_views(batch, lambda x: TEXT),
    "fewer rows in the second": lambda batch: with_second(batch, image(8, 8)[:2]),
    "(image, label)": lambda batch: [image(8, 8), torch.arange(N) % 2],
    "(image, multi-hot label)": lambda batch: [image(8, 8), torch.ones(N, 5)],
    "a dictionary": lambda batch: {"image": image(8, 8), "label": torch.arange(N)},
    "an image": lambda batch: image(8, 8),
    "nothing": lambda batch: None,
}


def with_views(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    return batch._replace(views=[change(view) for view in batch.views], index=torch.arange(N))


def with_second(batch: Batch, second: Any) -> Batch:
    return batch._replace(views=[image(8, 8), second], index=torch.arange(N))


def trained(method: Any, batch: Any) -> bool:
    """Whether the module takes the batch; a refusal must name what it must be and what it got."""
    try:
        loss = method.training_step(batch, 0)
    except ValueError as error:
        text = str(error)
        assert "got" in text or "cannot train on views of" in text, text
        assert "\n" not in text
        return False
    assert loss.isfinite()
    return True


@pytest.mark.parametrize("cls", every_trainable(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 7])
def test_another_number_of_views_is_refused(cls: type[Trainable], number: int) -> None:
    method, batch = build(cls)
    takes = method.takes
    fits = takes.least <= number <= (takes.most or number)
    views = [copy.deepcopy(batch.views[0]) for _ in range(number)]
    assert trained(method, batch._replace(views=views)) <= fits
    own = [*batch.views, *[batch.views[-1]] * 7][:number]
    if number == len(batch.views) or (number > len(batch.views) and takes.most is None):
        boxes = batch.boxes
        if boxes is not None:
            boxes = torch.cat([boxes, boxes[:, -1:].expand(-1, 7, -1)], dim=1)[:, :number]
        assert trained(method, batch._replace(views=own, boxes=boxes))


@pytest.mark.parametrize("cls", every_method(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_batch_trains_or_is_refused(cls: type[Trainable], kind: str) -> None:
    method, batch = build(cls)
    trained(method, KINDS[kind](batch))


def test_sequences_with_lengths_are_one_view() -> None:
    """Their lengths are neither labels nor a second view."""
    padded, label = Padded(torch.rand(N, 9), torch.full((N,), 7)), torch.arange(N)
    for view in (padded, TEXT):
        assert as_batch(view).views == [view]
        assert as_batch(view).label is None
        labeled = as_batch([view, label])
        assert labeled.views == [view]
        assert labeled.label is label
        assert as_batch([view, view]).views == [view, view]
        assert as_batch([[view, view], label]).views == [view, view]


@pytest.mark.parametrize("method", [SimCLR, BYOL])
@pytest.mark.filterwarnings("ignore")  # of Lightning, on so small a loader
def test_a_loader_of_images_and_labels_is_one_view(method: Any) -> None:
    net = SmallResNet((8, 16))
    parts = [net, MLP([16, 8])] + ([MLP([8, 8])] if method is BYOL else [])
    module = method(*parts, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    loader = DataLoader(TensorDataset(torch.rand(16, 3, 8, 8), torch.arange(16) % 2), 8)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"must have 2 views per sample, got 1; .*with_views"):
        trainer.fit(module, loader)
    assert module.step == 0
