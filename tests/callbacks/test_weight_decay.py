"""WeightDecaySchedule: the authors' curve, once an optimizer step, in the groups that decay."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.callbacks import WeightDecaySchedule
from sslzoo.methods import SSLMethod
from sslzoo.optim import ConstantSchedule, CosineSchedule, RunLength, exempt_bias_and_norm
from tests.callbacks.toy import FILTERS, make_loader
from tests.golden import load
from tests.toys import Pooled

pytestmark = FILTERS


class Toy(SSLMethod):
    """Without gradient: AdamW then only decays."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"nothing": 0 * self.backbone(batch.views[0]).sum()}


class Record(Callback):
    """The decay of each group at each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def after_step(self, optimizer: Any, *_: Any) -> None:
        self.seen.append([group["weight_decay"] for group in optimizer.param_groups])

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.optimizers[0].register_step_post_hook(self.after_step)


def fit(epochs: int, resume: str | None = None) -> tuple[Record, Trainer]:
    torch.manual_seed(0)
    method = Toy(
        Pooled(4),
        optimizer=partial(torch.optim.AdamW, lr=0.1, weight_decay=0.04),
        parameter_groups=exempt_bias_and_norm,
    )
    record = Record()
    run = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=2,
        callbacks=[WeightDecaySchedule(CosineSchedule(0.04, 0.4)), record],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    run.fit(method, make_loader(32, 0, 4, False, False), ckpt_path=resume)
    return record, run


def test_every_optimizer_step_has_its_own_and_exempt_groups_none(tmp_path: Path) -> None:
    record, run = fit(2)
    curve, run_length = CosineSchedule(0.04, 0.4), RunLength(8, 4)
    assert record.seen == [[curve(k, run_length), 0.0] for k in range(8)]
    torch.manual_seed(0)
    weight = Pooled(4).linear.weight.detach()
    for k in range(8):
        weight = weight * (1 - 0.1 * curve(k, run_length))
    torch.testing.assert_close(run.lightning_module.backbone.linear.weight, weight)
    path = str(tmp_path / "run.ckpt")
    run.save_checkpoint(path)
    more, _ = fit(3, path)  # a finished run keeps its run_length
    assert more.seen == [[0.4, 0.0]] * 4


@pytest.mark.parametrize(
    ("name", "first"), [("dino", 0), ("ijepa", 1)], ids=["dino", "ijepa, whose steps start at 1"]
)
def test_the_curve_is_the_authors(name: str, first: int) -> None:
    wanted = load(f"{name}/schedules.npz")["wd"]
    curve, run_length = CosineSchedule(0.04, 0.4), RunLength(len(wanted), 1)
    ours = [curve(step + first, run_length) for step in range(len(wanted))]
    assert ours == pytest.approx(list(wanted), rel=1e-9)


def test_no_decay_cannot_be_scheduled() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], weight_decay=0.1)
    with pytest.raises(ValueError, match="must be above 0, got 0"):
        WeightDecaySchedule(ConstantSchedule(0.0)).update(Toy(Pooled(4)), optimizer)
