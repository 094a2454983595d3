"""What the base class refuses, keeps and leaves alone."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch, as_batch
from sslzoo.callbacks.ema import EMA
from sslzoo.heads import MLP, byol_mlp, simclr_projector
from sslzoo.methods import BYOL, InstDisc, SimCLR
from sslzoo.optim import LARC, LARS, ConstantSchedule, RunLength, WarmupCosine


def simclr(**options: Any) -> SimCLR:
    return SimCLR(SmallResNet((8, 16)), simclr_projector(16, out_dim=8), **options)


def test_a_backbone_without_num_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_features.*Flatten"):
        SimCLR(nn.Flatten(), MLP([4, 4]))


def test_a_head_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="in_features 16, the width of its input, got 8"):
        SimCLR(SmallResNet((8, 16)), simclr_projector(8))
    with pytest.raises(ValueError, match="in_features and out_features"):
        InstDisc(SmallResNet((8, 16)), nn.Flatten(), bank_size=4)


def test_only_plain_values_are_kept_as_hyperparameters() -> None:
    method = simclr(temperature=0.3, optimizer=partial(torch.optim.SGD, lr=0.1))
    assert dict(method.hparams) == {"temperature": 0.3, "normalize": True, "schedule": None}


def test_a_plain_loop_needs_no_trainer_and_counts_steps() -> None:
    method = simclr(optimizer=partial(torch.optim.SGD, lr=0.1))
    optimizer = method.configure_optimizers()
    for _ in range(3):
        loss = method.losses(Batch([torch.rand(4, 3, 8, 8)] * 2, torch.arange(4)))["nt_xent"]
        loss.backward()
        optimizer.step()
    assert method.step == 3


def test_the_rates_of_a_plain_loop_follow_the_schedule() -> None:
    def made() -> tuple[Any, torch.optim.Optimizer]:
        method = simclr(optimizer=partial(torch.optim.SGD, lr=0.1), schedule=WarmupCosine(1.0))
        return method, method.configure_optimizers()

    def step(method: Any, optimizer: torch.optim.Optimizer) -> float:
        method.losses(Batch([torch.rand(4, 3, 8, 8)] * 2, torch.arange(4)))["nt_xent"].backward()
        optimizer.step()
        rate: float = optimizer.param_groups[0]["lr"]
        return rate

    (method, optimizer), schedule = made(), WarmupCosine(1.0)
    with pytest.raises(ValueError, match=r"run_length must be set in a loop without a Trainer"):
        step(method, optimizer)
    method.run_length = RunLength(8, 2)
    rates = [step(method, optimizer) for _ in range(5)]
    again, resumed = made()
    again.load_state_dict(method.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    rates += [step(again, resumed) for _ in range(3)]
    assert rates == [0.1 * schedule(i, RunLength(8, 2)) for i in range(8)]


def test_fit_without_an_optimizer_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match="optimizer=lambda"):
        simclr().configure_optimizers()


def test_torchs_own_schedules_are_refused() -> None:
    schedule: Any = torch.optim.lr_scheduler.StepLR
    with pytest.raises(ValueError, match=r"schedule must be a Schedule, .*got .*StepLR"):
        simclr(optimizer=partial(torch.optim.SGD, lr=0.1), schedule=schedule)


@pytest.mark.parametrize(
    "data",
    [
        lambda a, b, y: Batch([a, b], torch.arange(4), y),
        lambda a, b, y: ((a, b), y),
        lambda a, b, y: [[a, b], y],
        lambda a, b, y: [a, b],
        lambda a, b, y: (a, b),
    ],
    ids=["Batch", "pair", "list", "views", "tuple of views"],
)
def test_foreign_batches_train_alike(data: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(4, 3, 8, 8, generator=generator) for _ in range(2))
    y = torch.arange(4)
    torch.manual_seed(0)
    method = simclr()
    want = copy.deepcopy(method).losses(Batch([a, b], y))["nt_xent"]
    assert torch.equal(method.training_step(data(a, b, y), 0), want)


def test_image_and_label_is_one_view() -> None:
    batch = as_batch([torch.rand(4, 3, 8, 8), torch.arange(4)])
    assert len(batch.views) == 1
    assert batch.label is not None


def test_other_batches_are_named() -> None:
    with pytest.raises(ValueError, match="got dict"):
        as_batch({"image": torch.rand(4, 3, 8, 8)})


def test_a_bank_without_indices_says_how_to_get_them() -> None:
    method = InstDisc(SmallResNet((8, 16)), nn.Linear(16, 8), bank_size=48, num_negatives=6)
    with pytest.raises(ValueError, match="with_views"):
        method.losses(as_batch([torch.rand(4, 3, 8, 8), torch.arange(4)]))


def test_instdisc_keeps_its_constant_in_the_checkpoint() -> None:
    def fresh() -> InstDisc:
        torch.manual_seed(0)
        return InstDisc(SmallResNet((8, 16)), nn.Linear(16, 8), bank_size=48, num_negatives=6)

    first, second = fresh(), fresh()
    batch = Batch([torch.rand(4, 3, 8, 8)], torch.arange(4))
    first.losses(batch)
    assert first.z_constant > 0
    second.load_state_dict(first.state_dict())
    other = Batch([torch.rand(4, 3, 8, 8) * 9], torch.arange(4, 8))
    second.losses(other)
    assert second.z_constant == first.z_constant


def test_instdisc_proximal_term_pulls_toward_the_old_row() -> None:
    method = InstDisc(
        SmallResNet((8, 16)), nn.Linear(16, 8), 48, num_negatives=0, proximal_weight=30.0
    )
    batch = Batch([torch.rand(4, 3, 8, 8)], torch.arange(4))
    terms = method.losses(batch)
    assert terms.keys() == {"softmax", "proximal"}
    f = method.embed(batch.views[0])
    wanted = 30 * (f - method.bank.rows[:4]).square().sum(1).mean()
    torch.testing.assert_close(terms["proximal"], wanted)


class Holder:
    """Two Linears and a clock."""

    def __init__(self) -> None:
        self.student, self.teacher = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        nn.init.constant_(self.student.weight, 2.0)
        self.step, self.run_length = 0, RunLength(10, 10)

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.student, self.teacher)]


def test_ema_moves_parameters_and_leaves_buffers_alone() -> None:
    holder = Holder()
    holder.student.num_batches_tracked.fill_(5)
    holder.student.running_mean.fill_(3.0)  # type: ignore[union-attr]
    EMA(ConstantSchedule(0.75), "after_step").update(holder, 0)
    assert torch.equal(holder.teacher.weight, torch.full((3,), 0.75 * 1 + 0.25 * 2))
    assert int(holder.teacher.num_batches_tracked) == 0
    assert torch.equal(holder.teacher.running_mean, torch.zeros(3))


def test_ema_before_forward_uses_the_weights_a_step_starts_from() -> None:
    holder, ema = Holder(), EMA(ConstantSchedule(0.0), "before_forward")
    trainer: Any = None
    module: Any = holder
    ema.on_train_start(trainer, module)
    ema.on_train_batch_start(trainer, module, None, 0)
    assert torch.equal(holder.teacher.weight, holder.student.weight)
    with torch.no_grad():
        holder.student.weight.fill_(9.0)
    ema.on_train_batch_start(trainer, module, None, 1)  # a second micro-batch of the same step
    assert not torch.equal(holder.teacher.weight, holder.student.weight)
    holder.step = 1
    ema.on_train_batch_start(trainer, module, None, 2)
    assert torch.equal(holder.teacher.weight, holder.student.weight)


@pytest.mark.parametrize("momentum", [1.5, -0.1])
def test_a_momentum_outside_0_and_1_is_refused(momentum: float) -> None:
    method = BYOL(SmallResNet((8, 16)), byol_mlp(16, 8, 4), byol_mlp(4, 8, 4))
    with pytest.raises(ValueError, match=rf"teacher must be in \[0, 1\], got {momentum}"):
        EMA(momentum, when="after_step").update(method, 0)


def test_a_first_loss_that_is_not_finite_is_refused() -> None:
    views = [torch.full((4, 3, 8, 8), torch.nan)] * 2
    with pytest.raises(ValueError, match=r"loss of SimCLR must be finite .*, got nt_xent nan"):
        simclr()._checked_losses(Batch(views, torch.arange(4)))


def test_batch_norm_of_a_single_sample_is_refused_by_the_methods_name() -> None:
    method = BYOL(SmallResNet((8, 16)), byol_mlp(16, 8, 4), byol_mlp(4, 8, 4))
    with pytest.raises(ValueError, match="batch of BYOL must have at least 2 samples"):
        method._checked_losses(Batch([torch.rand(1, 3, 8, 8)] * 2, torch.arange(1)))


def test_ema_refuses_networks_that_differ() -> None:
    holder = Holder()
    holder.teacher = nn.BatchNorm1d(3, affine=False)
    with pytest.raises(ValueError, match="must have the same parameters"):
        EMA(ConstantSchedule(0.5), "after_step").update(holder, 0)


def test_teachers_are_no_parameters_of_the_optimizer() -> None:
    method = BYOL(SmallResNet((8, 16)), byol_mlp(16, 32, 8), byol_mlp(8, 32, 8))
    given: list[Tensor] = [p for group in method._parameter_groups(method) for p in group["params"]]
    teachers = {id(p) for _, teacher in method.teacher_pairs() for p in teacher.parameters()}
    assert teachers
    assert not teachers & {id(p) for p in given}


def test_a_method_can_be_copied_and_pickled() -> None:
    method = simclr()
    again = pickle.loads(pickle.dumps(method))
    batch = Batch([torch.rand(4, 3, 8, 8)] * 2, torch.arange(4))
    assert torch.equal(method.losses(batch)["nt_xent"], again.losses(batch)["nt_xent"])


def test_ddp_is_told_to_leave_memories_alone() -> None:
    method = InstDisc(SmallResNet((8, 16)), nn.Linear(16, 8), bank_size=48)
    method._trainer = SimpleNamespace(strategy=DDPStrategy())  # type: ignore[assignment]
    method.setup("fit")
    assert method._ddp_params_and_buffers_to_ignore == ["bank.rows"]


def test_other_strategies_are_refused_by_name() -> None:
    method = simclr()
    method._trainer = SimpleNamespace(strategy=FSDPStrategy())  # type: ignore[assignment]
    with pytest.raises(ValueError, match="FSDPStrategy"):
        method.setup("fit")


LOADER = DataLoader(TensorDataset(torch.rand(8, 3, 8, 8), torch.rand(8, 3, 8, 8)), 4)


def fit(optimizer: Any, precision: Any = "32-true", data: Any = None, **options: Any) -> SimCLR:
    method = simclr(optimizer=optimizer)
    trainer = Trainer(**{
        "accelerator": "cpu", "precision": precision, "max_epochs": 1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "log_every_n_steps": 1, **options,
    })  # fmt: skip
    trainer.fit(method, LOADER if data is None else data)
    return method


quiet = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|val_dataloader)")


@quiet
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop])
def test_an_eps_that_is_zero_in_the_parameters_type_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"eps of {kind.__name__} .* float16, got 1e-08.*mixed"):
        fit(partial(kind, lr=1e-3), "16-true")
    for options in ({"eps": 1e-4}, {}):
        precision = "16-true" if options else "bf16-true"
        assert fit(partial(kind, lr=1e-3, **options), precision).step == 2


@quiet
@pytest.mark.parametrize("kind", [torch.optim.SGD, LARC, LARS])
def test_optimizers_without_such_an_eps_train_in_float16(kind: Any) -> None:
    assert fit(partial(kind, lr=1e-3), "16-true").step == 2


NOT_FINITE = r"must be finite, got NaN or infinity in \d+ of \d+ after {} steps, the first is"


@quiet
def test_parameters_that_are_not_finite_end_the_run_before_they_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=NOT_FINITE.format(2)):
        fit(partial(torch.optim.SGD, lr=1e38), callbacks=Evaluates())
    each = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    for_good = {"enable_checkpointing": True, "max_epochs": 2, "log_every_n_steps": 0}
    with pytest.raises(ValueError, match=NOT_FINITE.format(3)):
        fit(partial(torch.optim.SGD, lr=1e-3), callbacks=[Spoils(3), each], **for_good)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]


class Evaluates(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        raise AssertionError("features that are not finite would be evaluated first")


class Spoils(Callback):
    """Makes one parameter NaN after the step of this number, as an overflow would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.step == self.step:
            next(pl_module.parameters()).data.fill_(torch.nan)


@quiet
@pytest.mark.parametrize(("accumulated", "every", "end"), [(1, 5, 5), (2, 3, 6), (1, 1, 4)])
def test_a_loss_that_is_not_finite_ends_the_run_where_losses_are_logged(
    accumulated: int, every: int, end: int
) -> None:
    """The step at which it was is named, also if the losses are read later."""
    told = NOT_FINITE.format(end) + r" .*, and in the loss nt_xent after 3 steps; use"
    data = DataLoader(TensorDataset(*[torch.rand(64, 3, 8, 8)] * 2), 4)
    options = {"accumulate_grad_batches": accumulated, "log_every_n_steps": every}
    with pytest.raises(ValueError, match=told):
        fit(partial(torch.optim.SGD, lr=1e-3), data=data, callbacks=Spoils(3), **options)


@quiet
def test_a_loss_that_is_not_finite_may_pass_where_its_step_is_left_out() -> None:
    """As the scaler of float16 leaves a step out, or a user's hook."""

    class LeavesOut(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for parameter in pl_module.parameters():
                parameter.grad.nan_to_num_()

    data = DataLoader(TensorDataset(*[torch.rand(16, 3, 8, 8)] * 2), 4)
    data.dataset.tensors[0][9] = torch.nan  # type: ignore[attr-defined]
    assert fit(partial(torch.optim.SGD, lr=1e-3), data=data, callbacks=LeavesOut()).step == 4
