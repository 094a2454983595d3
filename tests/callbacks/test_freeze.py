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

from sslzoo.backbones import small_vit
from sslzoo.batch import Batch
from sslzoo.callbacks import Freeze, FreezeUntil
from sslzoo.methods import BYOL, DINO, SSLMethod
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
        (FreezeUntil("projector", fraction=0.5), 3),  # of 6 steps
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


class States(Callback):
    """State of the method after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        state = {name: x.clone() for name, x in pl_module.state_dict().items()}
        self.seen.append(state)


def run_toy(method: SSLMethod, loader: DataLoader, *callbacks: Callback) -> States:
    states = States()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[*callbacks, states],
    )
    trainer.fit(method, loader)
    return states


def differing(a: dict[str, Tensor], b: dict[str, Tensor], prefix: str) -> set[str]:
    return {n for n in a if n.startswith(prefix) and not torch.equal(a[n], b[n])}


def test_a_frozen_backbone_keeps_its_statistics_and_its_teacher() -> None:
    method, loader = toy()
    start = {name: x.clone() for name, x in method.state_dict().items()}
    states = run_toy(method, loader, FreezeUntil("backbone", fraction=0.5))
    for step in range(3):
        for part in ("backbone.", "teacher_backbone."):
            assert not differing(start, states.seen[step], part), (step, part)
        assert differing(start, states.seen[step], "projector.")
    student = {n.removeprefix("backbone."): x for n, x in states.seen[2].items()}
    for name, x in method.teacher_backbone.named_parameters():  # type: ignore[union-attr, operator]
        assert torch.equal(student[name], states.seen[2][f"teacher_backbone.{name}"]), x.shape
    assert "backbone.bn.running_mean" in differing(start, states.seen[3], "backbone.")
    assert "teacher_backbone.bn.running_mean" in differing(start, states.seen[3], "teacher_")
    assert all(m.training for m in method.modules())


def test_a_method_that_freezes_its_head_keeps_the_users_freeze() -> None:
    """Lightning drops the trainer's callbacks of the types that the method configures."""
    method, batch = build(DINO, freeze_last_layer_epochs=1)
    method._optimizer = partial(torch.optim.SGD, lr=0.1)
    start = {name: x.clone() for name, x in method.double().state_dict().items()}
    loader = DataLoader([data_like(batch, 4)] * 2, batch_size=None)
    states = run_toy(method, loader, FreezeUntil("backbone", steps=3))
    assert not differing(start, states.seen[2], "backbone.")
    assert differing(states.seen[2], states.seen[3], "backbone.")
    assert not differing(start, states.seen[1], "projector.last_layer")
    assert differing(start, states.seen[1], "projector.")


def test_first_layers_never_move_and_the_rest_does() -> None:
    method, loader = toy()
    start = {name: x.clone() for name, x in method.state_dict().items()}
    states = run_toy(method, loader, Freeze(blocks=0))
    moved_names = differing(start, states.seen[-1], "backbone.")
    assert {name.split(".")[1] for name in moved_names} == {"blocks"}
    assert {n.split(".")[1] for n in differing(start, states.seen[-1], "teacher_backbone.")} == {
        "blocks"
    }
    assert all(p.requires_grad for p in method.backbone.parameters()), "as before the run"


def test_statistics_are_kept_while_all_parameters_move() -> None:
    method, loader = toy()
    start = {name: x.clone() for name, x in method.state_dict().items()}
    states = run_toy(method, loader, Freeze(blocks=None, statistics=True))
    moved = differing(start, states.seen[-1], "backbone.")
    assert {f"backbone.{name}" for name, _ in method.backbone.named_parameters()} <= set(moved)
    both = [*moved, *differing(start, states.seen[-1], "teacher_backbone.")]
    assert not any("running" in name for name in both)
    assert all(m.training for m in method.modules()), "as before the run"


def test_a_frozen_vit_trains_its_mask_token() -> None:
    vit = small_vit(8, 4, 8, 3, 2, mask_token=True)
    Freeze(blocks=2).freeze(torch.nn.ModuleDict({"backbone": vit}))
    trained = [name for name, p in vit.named_parameters() if p.requires_grad]
    assert {".".join(name.split(".")[:2]) for name in trained} == {
        *("mask_token", "blocks.2", "norm.weight", "norm.bias")
    }


def test_too_many_blocks_are_refused() -> None:
    method, _ = toy()
    with pytest.raises(ValueError, match=r"blocks must be below 2, .* of SmallResNet .*, got 7"):
        Freeze(blocks=7).freeze(method)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="got 1, 2 and 0"):
        FreezeUntil("projector", epochs=1, steps=2)
    with pytest.raises(ValueError, match="got -1, 0 and 0"):
        FreezeUntil("projector", epochs=-1)
    method, _ = toy()
    with pytest.raises(ValueError, match="must be a submodule of BYOL, got 'last'"):
        FreezeUntil("last").on_train_start(None, method)  # type: ignore[arg-type]
