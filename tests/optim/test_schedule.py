"""Schedules and curves equal the authors' at every step, and survive a resume."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sslzoo.optim import (
    BiasAndNormRate,
    ConstantRateFor,
    CosineSchedule,
    LinearSchedule,
    MomentumForRun,
    RunLength,
    Schedule,
    ScheduleLR,
    SineSchedule,
    StepSchedule,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    exempt_bias_and_norm,
)
from tests.golden import assert_close_to_golden, load


def rates(schedule: ScheduleLR, steps: int) -> list[float]:
    out = []
    for _ in range(steps):
        out.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return out


def sgd(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def test_warmup_cosine_equals_byol() -> None:
    z = load("byol/schedules.npz")
    hyper = z["meta"]["hyper"]
    run_length = RunLength(hyper["max_steps"], 1)
    peak = hyper["base_learning_rate"] * hyper["batch_size"] / 256
    schedule = ScheduleLR(sgd(peak), WarmupCosine(warmup_epochs=hyper["warmup_steps"]), run_length)
    assert_close_to_golden(torch.tensor(rates(schedule, len(z["lr"]))), z["lr"], 1e-6)
    tau = CosineSchedule(hyper["base_ema"], 1.0)
    taus = [tau(int(step), run_length) for step in z["step"]]
    assert_close_to_golden(torch.tensor(taus, dtype=torch.float64), z["ema"], 1e-6)


def test_step_and_cosine_schedules_equal_w_mse() -> None:
    """Their warm-up sets the rate, so that drops in it are lost; their cosine is a step late."""
    z = load("wmse/schedule.npz")
    hyper = z["meta"]["hyper"]
    warmup, per_epoch = hyper["warmup"], hyper["iters_per_epoch"]
    total = hyper["epochs"] * per_epoch
    drops = [hyper["epochs"] - early for early in hyper["drop"]]
    drops = [epoch for epoch in drops if epoch * per_epoch >= warmup]
    schedule = StepSchedule(drops, hyper["gamma"], warmup_steps=warmup, warmup_has_peak=True)
    run_length = RunLength(total, per_epoch)
    rates = [hyper["lr"] * schedule(step, run_length) for step in range(total)]
    assert_close_to_golden(np.array(rates), z["lr_step"], 1e-12)
    cosine = CosineSchedule(hyper["lr"], 0.0)
    rates[warmup:] = [cosine(step - 1, run_length) for step in range(warmup, total)]
    assert_close_to_golden(np.array(rates), z["lr_cos"], 1e-12)


def test_sine_equals_sayannags_momentum_of_tico() -> None:
    z = load("tico/schedules.npz")
    hyper = z["meta"]["hyper"]
    schedule, epochs = SineSchedule(hyper["m"], 1.0, every="epoch"), hyper["max_iter"]
    run_length = RunLength(3 * epochs, 3)
    values = [schedule(step, run_length) for step in range(3 * epochs)]
    assert_close_to_golden(np.array(values)[3 * z["i"]], z["momentum"], 1e-12)
    assert values[::3] == values[2::3]
    by_step = SineSchedule(0.0, 2.0)
    assert [by_step(step, RunLength(6, 3)) for step in (0, 2, 6)] == [0, pytest.approx(1), 2]


def test_warmup_cosine_equals_simclr() -> None:
    z = load("simclr/lr_schedule.npz")
    hyper = z["meta"]["hyper"]
    # The authors' run has one step more than epochs * n // batch.
    total = hyper["num_examples"] * hyper["epochs"] // hyper["batch"] + 1
    assert total == int(z["total_steps"])
    warmup = hyper["warmup_epochs"] * hyper["num_examples"] // hyper["batch"]
    peak = hyper["base_lr"] * hyper["batch"] / 256
    schedule = ScheduleLR(sgd(peak), WarmupCosine(warmup_epochs=warmup), RunLength(total, 1))
    assert_close_to_golden(torch.tensor(rates(schedule, len(z["lr"]))), z["lr"], 1e-6)


@pytest.mark.parametrize("system", ["barlow", "vicreg"])
def test_warmup_cosine_equals_barlow_twins_and_vicreg(system: str) -> None:
    z = load(f"{system}/schedule.npz")
    hyper = z["meta"]["hyper"]
    scale = hyper["batch_size"] / 256
    net = nn.Linear(2, 2)
    if system == "barlow":
        groups = BiasAndNormRate(hyper["lr_biases"] * scale)(net)
        optimizer = torch.optim.SGD(groups, lr=hyper["lr_weights"] * scale)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=hyper["base_lr"] * scale)
    per_epoch = hyper["iters_per_epoch"]
    run_length = RunLength(hyper["epochs"] * per_epoch, per_epoch)
    schedule = ScheduleLR(optimizer, WarmupCosine(warmup_epochs=10, end_factor=0.001), run_length)
    seen = []
    for _ in range(run_length.total_steps):
        seen.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    got = torch.tensor(seen, dtype=torch.float64)[z["step"]]
    assert_close_to_golden(got.squeeze(1), z["lr"], 1e-9)


def test_warmup_cosine_equals_swav() -> None:
    z = load("swav/lr_schedule.npz")
    hyper = z["meta"]["hyper"]
    per_epoch, warmup = hyper["iters_per_epoch"], hyper["warmup_epochs"]
    schedule = ScheduleLR(
        sgd(hyper["base_lr"]),
        WarmupCosine(
            warmup_epochs=warmup,
            start_factor=hyper["start_warmup"] / hyper["base_lr"],
            end_factor=hyper["final_lr"] / hyper["base_lr"],
            warmup_has_peak=True,
        ),
        RunLength(hyper["epochs"] * per_epoch, per_epoch),
    )
    got = rates(schedule, len(z["lr"]))
    assert_close_to_golden(torch.tensor(got, dtype=torch.float64), z["lr"], 1e-9)
    peak = warmup * per_epoch
    assert got[peak - 1] == got[peak] == hyper["base_lr"]  # twice


def test_a_warmup_of_one_step_that_has_the_peak_starts_low() -> None:
    schedule = ScheduleLR(
        sgd(1.0),
        WarmupCosine(warmup_epochs=0.2, start_factor=0.5, warmup_has_peak=True),
        RunLength(5, 5),
    )
    assert rates(schedule, 2) == [0.5, 1.0]  # as linspace(0.5, 1, 1)


def test_rates_decay_and_momentum_equal_dino() -> None:
    z = load("dino/schedules.npz")
    base, final, epochs, per_epoch, warmup = z["meta"]["hyper"]["lr"]
    run_length = RunLength(epochs * per_epoch, per_epoch)
    schedule = ScheduleLR(
        sgd(base),
        WarmupCosine(warmup_epochs=warmup, end_factor=final / base, warmup_has_peak=True),
        run_length,
    )
    got = torch.tensor(rates(schedule, len(z["lr"])), dtype=torch.float64)
    assert_close_to_golden(got, z["lr"], 1e-12)
    ends = {"wd": z["meta"]["hyper"]["wd"][:2], "momentum": [z["meta"]["hyper"]["momentum"][0], 1]}
    for name, (start, end) in ends.items():
        schedule = CosineSchedule(start, end)
        values = [schedule(step, run_length) for step in range(run_length.total_steps)]
        assert_close_to_golden(torch.tensor(values, dtype=torch.float64), z[name], 1e-12)


def test_teacher_temperatures_equal_dino_and_ibot() -> None:
    """By epoch, here of 5 steps; iBOT's second one waits for the epoch that masks first."""
    z, hyper = load("dino/loss_1rank.npz"), load("dino/loss_1rank.npz")["meta"]["hyper"]
    names = ("warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs")
    schedule = LinearSchedule(
        *(hyper[name] for name in names[:2]), hyper[names[2]] - 1, every="epoch"
    )
    assert_by_epoch(schedule, z["teacher_temp_schedule"])
    z = load("ibot/loss_1rank.npz")
    of_cls, of_patches = z["meta"]["hyper"]["temps"][:2], z["meta"]["hyper"]["temps"][2:4]
    warmup = z["meta"]["hyper"]["temps"][4] - 1
    assert_by_epoch(LinearSchedule(*of_cls, warmup, every="epoch"), z["temp_schedule"])
    delay = z["meta"]["hyper"]["mim_start_epoch"]
    schedule = LinearSchedule(*of_patches, warmup, every="epoch", delay=delay)
    assert_by_epoch(schedule, z["temp2_schedule"])


def assert_by_epoch(schedule: LinearSchedule, wanted: np.ndarray) -> None:
    run_length = RunLength(5 * len(wanted), 5)
    values = torch.tensor([schedule(step, run_length) for step in range(5 * len(wanted))]).double()
    assert_close_to_golden(values, np.repeat(wanted, 5), 1e-7)


def test_byol_official_run_lengths_and_tau() -> None:
    z = load("byol/official_configs.npz")
    for epochs, steps, base in zip(z["epochs"], z["max_steps"], z["ema"], strict=True):
        assert int(steps) == int(epochs) * 1_281_167 // 4096
        assert CosineSchedule(float(base), 1.0)(0, RunLength(int(steps), 312)) == pytest.approx(
            float(base)
        )


def test_warmup_linear_is_a_triangle() -> None:
    schedule = ScheduleLR(sgd(2.0), WarmupLinear(warmup_fraction=0.2), RunLength(10, 5))
    wanted = [0, 1, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25, 0, 0]
    assert rates(schedule, 12) == pytest.approx(wanted)
    assert rates(ScheduleLR(sgd(2.0), WarmupLinear(), RunLength(4, 2)), 4) == pytest.approx(
        [2, 1.5, 1, 0.5]
    )
    assert rates(ScheduleLR(sgd(2.0), WarmupLinear(warmup_epochs=1), RunLength(4, 2)), 3)[
        1
    ] == pytest.approx(1)


def test_steps_drop_at_their_epochs() -> None:
    schedule = ScheduleLR(sgd(0.03), StepSchedule(milestones=[120, 160]), RunLength(200 * 3, 3))
    seen = rates(schedule, 600)
    assert seen[0] == seen[359] == pytest.approx(0.03)
    assert seen[360] == seen[479] == pytest.approx(0.003)
    assert seen[480] == seen[599] == pytest.approx(0.0003)


def test_steps_rise_first_where_asked() -> None:
    schedule = ScheduleLR(
        sgd(0.2), StepSchedule(milestones=[3, 5], gamma=0.5, warmup_steps=20), RunLength(60, 10)
    )
    seen = rates(schedule, 60)
    assert seen[0] == 0
    assert seen[5] == pytest.approx(0.05)
    assert seen[20] == seen[29] == pytest.approx(0.2)
    assert seen[30] == seen[49] == pytest.approx(0.1)
    assert seen[59] == pytest.approx(0.05)


def test_first_middle_and_last_value() -> None:
    schedule = ScheduleLR(
        sgd(2.0), WarmupCosine(warmup_epochs=1, end_factor=0.1), RunLength(110, 10)
    )
    seen = rates(schedule, 111)
    assert seen[0] == 0
    assert seen[5] == pytest.approx(1.0)
    assert seen[10] == pytest.approx(2.0)
    assert seen[60] == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert seen[110] == pytest.approx(0.2)


def test_per_epoch_is_constant_within_an_epoch() -> None:
    seen = rates(ScheduleLR(sgd(1.0), WarmupCosine(every="epoch"), RunLength(40, 10)), 40)
    assert len(set(seen[10:20])) == 1
    assert seen[10] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_a_line_without_epochs_ends_with_the_run() -> None:
    schedule = LinearSchedule(0.996, 1.0)
    for run_length in (RunLength(100, 10), RunLength(30, 7)):
        whole = LinearSchedule(
            0.996, 1.0, epochs=run_length.total_steps / run_length.steps_per_epoch
        )
        for step in (0, 1, 29, run_length.total_steps):
            assert schedule(step, run_length) == pytest.approx(whole(step, run_length), rel=1e-12)
        assert schedule(run_length.total_steps, run_length) == 1.0
    late = LinearSchedule(0.0, 1.0, delay=2)
    assert [late(step, RunLength(40, 10)) for step in (0, 20, 30, 40)] == [0, 0, 0.5, 1]


def test_a_linear_schedule_ends_where_it_should() -> None:
    schedule, run_length = LinearSchedule(0.04, 0.07, epochs=3), RunLength(100, 10)
    values = [schedule(step, run_length) for step in (0, 15, 30, 99)]
    assert values == pytest.approx([0.04, 0.055, 0.07, 0.07])


@pytest.mark.parametrize("kind", [WarmupCosine, StepSchedule, WarmupConstant])
def test_resumed_at_90_percent_equals_going_on(kind: type[Schedule]) -> None:
    whole = rates(ScheduleLR(sgd(0.5), kind(), RunLength(100, 10)), 100)
    first = ScheduleLR(sgd(0.5), kind(), RunLength(100, 10))
    rates(first, 90)
    second = ScheduleLR(sgd(0.5), kind(), RunLength(100, 10))
    second.load_state_dict(first.state_dict())
    assert rates(second, 10) == whole[90:]


def test_an_extended_run_keeps_its_length_unless_asked() -> None:
    saved = ScheduleLR(sgd(1.0), WarmupCosine(), RunLength(100, 10))
    rates(saved, 100)
    kept = ScheduleLR(sgd(1.0), WarmupCosine(), RunLength(200, 10))
    kept.load_state_dict(saved.state_dict())
    assert kept.run_length == RunLength(100, 10)
    assert rates(kept, 3) == pytest.approx([0, 0, 0])
    new = ScheduleLR(sgd(1.0), WarmupCosine(run_length_on_resume="new"), RunLength(200, 10))
    new.load_state_dict(saved.state_dict())
    assert new.run_length == RunLength(200, 10)
    assert rates(new, 1)[0] == pytest.approx(0.5)


def test_two_durations_are_refused() -> None:
    with pytest.raises(ValueError, match="warmup_epochs and warmup_fraction must not both"):
        ScheduleLR(sgd(1.0), WarmupCosine(warmup_epochs=1, warmup_fraction=0.1), RunLength(10, 1))


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)


def test_named_parts_keep_their_base_rate_also_after_a_resume() -> None:
    def make() -> ScheduleLR:
        groups = ConstantRateFor(["head"], exempt_bias_and_norm)(TwoParts())
        return ScheduleLR(torch.optim.SGD(groups, lr=0.5), WarmupCosine(), RunLength(10, 1))

    first = make()
    rates(first, 5)
    assert first.get_last_lr() == pytest.approx([0.25, 0.25, 0.5, 0.5])
    second = make()
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert [group["lr"] for group in second.optimizer.param_groups] == first.get_last_lr()


def test_groups_of_constant_rate_keep_their_other_options() -> None:
    net = TwoParts()
    groups = ConstantRateFor(["head"], exempt_bias_and_norm)(net)
    marks = [(group.get("constant_rate", False), group.get("adapt", True)) for group in groups]
    assert marks == [(False, True), (False, False), (True, True), (True, False)]
    given = [id(p) for group in groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in net.parameters())


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ValueError, match=r"\['body', 'head'\], got 'predictor'"):
        ConstantRateFor(["predictor"])(TwoParts())


def test_a_negative_rate_is_named() -> None:
    with pytest.raises(ValueError, match=r"at least 0, got -0\.1"):
        BiasAndNormRate(-0.1)


def test_a_short_runs_teacher_averages_a_fraction_of_the_run() -> None:
    momentum = MomentumForRun()
    assert momentum(0, RunLength(500, 10)) == pytest.approx(0.96)
    assert momentum(0, RunLength(1000, 10)) == pytest.approx(0.98)
    assert momentum(0, RunLength(125_100, 1251)) == CosineSchedule(0.996, 1.0)(0, RunLength(1, 1))
    assert momentum(0, RunLength(3, 1)) == 0  # the teacher is the student
    assert momentum(1000, RunLength(1000, 10)) == 1
    for wrong in ({"most": 1.0}, {"memory_fraction": 0.0}):
        with pytest.raises(ValueError, match="must be in"):
            MomentumForRun(**wrong)
