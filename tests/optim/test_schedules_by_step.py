"""Schedules of the speech methods equal fairseq's, entry by entry."""

from __future__ import annotations

import numpy as np
import pytest

from sslzoo.optim import ExponentialSchedule, LinearBySteps, RunLength, TriStage, WarmupPolynomial
from tests.golden import assert_close_to_golden, load


def test_polynomial_equals_fairseq() -> None:
    z = load("wav2vec2/schedule_polynomial.npz")
    how = z["meta"]["hyper"]
    rate, total = how["lr"][0], how["total_num_update"]
    schedule = WarmupPolynomial(
        how["warmup_updates"],
        power=how["power"],
        end_factor=how["end_learning_rate"] / rate,
    )
    rates = [rate * schedule(int(k), RunLength(total, 0)) for k in z["num_updates"]]
    assert_close_to_golden(np.array(rates), z["lr"], 1e-9)
    assert rates[0] == 0


def test_power_and_end_are_the_formula() -> None:
    schedule = WarmupPolynomial(warmup_fraction=0.2, power=2, end_factor=0.5)
    assert schedule(60, RunLength(100, 0)) == pytest.approx(0.5 + 0.5 * 0.5**2)
    assert schedule(100, RunLength(100, 0)) == schedule(120, RunLength(100, 0)) == 0.5


def test_tri_stage_equals_fairseq() -> None:
    z = load("data2vec/schedule_tri_stage.npz")
    how = z["meta"]["hyper"]
    rate, total = how["lr"][0], how["max_update"]
    factors = how["init_lr_scale"], how["final_lr_scale"]
    steps = [int(total * fraction) for fraction in how["phase_ratio"]]
    for schedule in (TriStage(how["phase_ratio"], *factors), TriStage((), *factors, steps)):
        rates = [rate * schedule(int(k), RunLength(total, 0)) for k in z["num_updates"]]
        assert_close_to_golden(np.array(rates), z["lr"], 1e-9)


def test_momentum_equals_data2vecs() -> None:
    z = load("data2vec/ema.npz")
    how = z["meta"]["hyper"]
    schedule = LinearBySteps(how["start"], how["end"], how["anneal_end_step"])
    momenta = [schedule(int(step), RunLength(1, 0)) for step in z["step"]]
    assert_close_to_golden(np.array(momenta), z["decay"], 1e-12)
    shifted = LinearBySteps(how["start"], how["end"], how["anneal_end_step"], first_step=1)
    assert shifted(4, RunLength(1, 0)) == schedule(5, RunLength(1, 0))


def test_temperature_of_the_quantizer() -> None:
    how = load("wav2vec2/gumbel_quantizer.npz")
    most, least, decay = how["meta"]["hyper"]["temp"]
    schedule = ExponentialSchedule(most, least, decay)
    updates = how["meta"]["hyper"]["num_updates"]
    assert schedule(updates, RunLength(1, 0)) == pytest.approx(float(how["train:temp"]))
    assert schedule(10**6, RunLength(1, 0)) == least


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sum 1.* got \[0.5, 0.9, 0.07\]"):
        TriStage((0.5, 0.9, 0.07))
    with pytest.raises(ValueError, match=r"must not both be set, got 5 and 0\.1"):
        WarmupPolynomial(5, 0.1)
