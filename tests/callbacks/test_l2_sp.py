"""L2SP: the gradient of weight / 2 * |w - w0|^2, once per step, with w0 of the start of the run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch.utils.data import DataLoader

from sslzoo.callbacks import L2SP, FreezeUntil
from sslzoo.methods import BYOL, SimCLR
from tests.callbacks.toy import FILTERS
from tests.ranks import Ranks
from tests.test_every_method import BATCH, assert_same, batches, state, toy, trainer
from tests.test_every_method import fit as fit_method
from tests.toys import build, data_like, rows

pytestmark = FILTERS


def fit(callbacks: list[Any], epochs: int = 2, path: Any = None, **options: Any) -> tuple[Any, Any]:
    method, batch = build(SimCLR)
    method._optimizer = partial(torch.optim.SGD, lr=0.1)
    data = data_like(batch, 12)
    batches = [rows(data, slice(i, i + 4)) for i in (0, 4, 8)]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(method.double(), DataLoader(batches, batch_size=None), ckpt_path=path)
    return method, trainer


def test_the_added_gradient_is_autograds() -> None:
    method, batch = build(SimCLR)
    penalty = L2SP(0.3)
    penalty.on_train_start(None, method)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(torch.randn_like(p))
    loss = torch.stack(list(method.losses(batch).values())).sum()
    named = method.backbone.named_parameters()
    distance = torch.stack([(p - penalty.start[name]).square().sum() for name, p in named]).sum()
    parameters = list(method.parameters())
    wanted = torch.autograd.grad(loss + 0.15 * distance, parameters, retain_graph=True)
    loss.backward()
    value = penalty.add(method)
    torch.testing.assert_close(value, 0.15 * distance.detach())
    for p, grad in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-6)


def test_a_large_weight_keeps_the_encoder_near_its_start_and_not_the_heads() -> None:
    def distances(*callbacks: Any) -> list[float]:
        method, _ = fit(list(callbacks))
        start, _ = build(SimCLR)
        pairs = [
            (getattr(method, name).parameters(), getattr(start, name).parameters())
            for name in ("backbone", "projector")
        ]
        return [
            sum(float((p - q).detach().square().sum()) for p, q in zip(*parts, strict=True))
            for parts in pairs
        ]

    near, far = distances(L2SP(5.0)), distances()
    assert near[0] < 0.8 * far[0]
    assert near[1] > 0.8 * far[1]


def test_a_resumed_run_keeps_the_start_and_ends_the_same(tmp_path: Path) -> None:
    whole, _ = fit([L2SP(1.0)])
    _, trainer = fit([L2SP(1.0)], epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed, trainer = fit([L2SP(1.0)], path=tmp_path / "one.ckpt")
    for name, x in resumed.state_dict().items():
        assert torch.equal(x, whole.state_dict()[name]), name
    assert trainer.callback_metrics["train/l2_sp"] > 0


def test_a_frozen_module_is_not_pulled() -> None:
    _, trainer = fit([L2SP(1.0), FreezeUntil("backbone", epochs=2)])
    assert trainer.callback_metrics["train/l2_sp"] == 0


def test_micro_batches_add_it_once() -> None:
    penalty = L2SP(1.0)
    calls: list[int] = []
    add = penalty.add
    penalty.add = lambda method: (calls.append(1), add(method))[1]  # type: ignore[method-assign]
    fit([penalty], epochs=1, accumulate_grad_batches=3)
    assert len(calls) == 1


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="weight"):
        L2SP(-1.0)
    with pytest.raises(ValueError, match="must be a submodule of SimCLR, got 'encoder'"):
        fit([L2SP(1.0, "encoder")])


def fit_on_rank(rank: int, world: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    method, data = toy(BYOL)
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "devices": world}
    if world > 1:
        options |= {"strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    run = trainer(callbacks=[L2SP(0.5)], **options)
    fit_method(run, method, batches(data, BATCH // 2, rank, world))
    return state(method)


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    one = fit_on_rank(0, 1)
    for result in ranks(2, fit_on_rank, 2):
        assert_same(result, one)
