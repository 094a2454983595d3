"""FreezeUntil: what is frozen keeps its bits, and for exactly as long as asked."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo.batch import Batch
from sslzoo.callbacks import FreezeUntil
from sslzoo.methods import BYOL, SSLMethod
from sslzoo.optim import RunLength
from tests.callbacks.toy import FILTERS
from tests.toys import build, data_like, rows

pytestmark = FILTERS


class Weights(Callback):
    """The projector's and the predictor's first weights after each optimizer step."""

    def __init__(self) -> None:
        self.frozen: list[Tensor] = []
        self.free: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.frozen.append(pl_module.projector.layers[0].weight.detach().clone())
        self.free.append(pl_module.predictor.layers[0].weight.detach().clone())


def toy() -> tuple[SSLMethod, DataLoader]:
    """Three steps an epoch."""
    method, batch = build(BYOL)
    method._optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    data = data_like(batch, 12)
    batches = [rows(data, slice(i, i + 4)) for i in (0, 4, 8)]
    return method.double(), DataLoader(batches, batch_size=None)


def fit(freeze: FreezeUntil, epochs: int, path: Path, resume: Path | None = None) -> Weights:
    torch.manual_seed(0)
    weights = Weights()
    method, loader = toy()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[freeze, weights],
    )
    trainer.fit(method, loader, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(path)
    return weights


def moved(weights: list[Tensor]) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(weights, weights[1:], strict=False)]


@pytest.mark.parametrize(
    ("freeze", "steps"),
    [
        (FreezeUntil("projector", epochs=1), 3),
        (FreezeUntil("projector", epochs=1.5), 5),  # step 4 begins before 1.5 epochs are over
        (FreezeUntil("projector", steps=2), 2),
        (FreezeUntil("projector"), 0),
    ],
)
def test_a_module_is_still_for_that_long_and_then_moves(
    freeze: FreezeUntil, steps: int, tmp_path: Path
) -> None:
    weights = fit(freeze, 2, tmp_path / "end.ckpt")
    assert all(moved(weights.free))
    # Between the weights after step k and after step k + 1.
    assert moved(weights.frozen) == [k + 1 >= steps for k in range(5)]


def test_a_resumed_run_knows_how_long_it_has_been(tmp_path: Path) -> None:
    freeze = FreezeUntil("projector", steps=4)
    fit(freeze, 1, tmp_path / "one.ckpt")
    resumed = fit(freeze, 2, tmp_path / "two.ckpt", tmp_path / "one.ckpt")
    assert moved(resumed.frozen) == [True, True]  # steps 3, 4, 5
    still = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(resumed.frozen[0], still["projector.layers.0.weight"])


def test_a_plain_loop_can_call_it() -> None:
    method, _ = toy()
    method.run_length = RunLength(4, 2)
    views = [torch.rand(4, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    freeze = FreezeUntil("projector", epochs=1)
    for step, still in enumerate([True, True, False]):
        method.step = step
        method.losses(Batch(views, torch.arange(4)))["regression"].backward()
        freeze.drop(method)
        assert all((p.grad is None) == still for p in method.projector.parameters())
        assert all(p.grad is not None for p in method.predictor.parameters())


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        FreezeUntil("projector", epochs=1, steps=2)
    with pytest.raises(ValueError, match="got -1 and 0"):
        FreezeUntil("projector", epochs=-1)
    method, _ = toy()
    with pytest.raises(ValueError, match="must be a submodule of BYOL, got 'last'"):
        FreezeUntil("last").on_train_start(None, method)  # type: ignore[arg-type]
