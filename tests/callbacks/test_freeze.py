"""FreezeFirstSteps: a part gets gradients and does not move, for as many steps as asked."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sslzoo.batch import Batch
from sslzoo.callbacks import FreezeFirstSteps
from sslzoo.heads import MLP
from sslzoo.methods import SimCLR
from tests.toys import Pooled


def _method() -> SimCLR:
    torch.manual_seed(0)
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    return SimCLR(Pooled(6), MLP([6, 4]), optimizer=sgd)


@pytest.mark.parametrize("steps", [0, 2])
def test_the_part_stands_still_and_the_rest_moves(steps: int) -> None:
    method, freeze = _method(), FreezeFirstSteps("projector", steps)
    optimizer = method.configure_optimizers()
    for step in range(4):
        before = [p.clone() for p in method.parameters()]
        views = [torch.randn(5, 3, 4, 4) for _ in range(2)]
        method.losses(Batch(views, torch.arange(5)))["nt_xent"].backward()
        freeze.drop_gradients(method)
        optimizer.step()
        optimizer.zero_grad()
        moved = {
            name.split(".")[0]
            for (name, p), old in zip(method.named_parameters(), before, strict=True)
            if not torch.equal(p, old)
        }
        assert moved == ({"backbone"} if step < steps else {"backbone", "projector"})


def test_a_negative_number_is_named() -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        FreezeFirstSteps("projector", -1)
