"""Schedules of wav2vec 2.0, HuBERT and data2vec, in optimizer steps or fractions of the run.

Reference code: facebookresearch/fairseq at 3d262bb, optim/lr_scheduler, and
examples/data2vec/models/data2vec_audio.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sslzoo.checks import check_at_least, check_interval, check_positive
from sslzoo.optim.schedule import OnResume, RunLength, Schedule


class ExponentialSchedule(Schedule):
    """`start * decay^step`, and at least `end`: the temperature of the Gumbel softmax.

    Args:
        start: value at step 0; 2 in wav2vec 2.0.
        end: lowest value; 0.5 in base models, 0.1 in large ones.
        decay: factor per step; 0.999995.
    """

    def __init__(self, start: float, end: float, decay: float):
        check_interval("decay", decay, 0, 1)
        self.start, self.end, self.decay = start, end, decay

    def __call__(self, step: int, run_length: RunLength) -> float:
        return max(self.start * self.decay**step, self.end)


class LinearBySteps(Schedule):
    """Linear from `start` to `end` over some optimizer steps, then constant: a teacher's momentum.

    Args:
        start: value at the beginning.
        end: value after `steps`.
        steps: length of the linear part; 30000 in data2vec for speech.
        first_step: what the step is at the first step of the run: 1 in data2vec for speech, whose
            update after the first step has that of step 1.
    """

    def __init__(self, start: float, end: float, steps: int, first_step: int = 0):
        check_at_least("steps", steps, 0)
        self.start, self.end, self.steps, self.first_step = start, end, steps, first_step

    def __call__(self, step: int, run_length: RunLength) -> float:
        done = step + self.first_step
        if done >= self.steps:
            return self.end
        return self.end - (self.end - self.start) * (1 - done / self.steps)


class WarmupPolynomial(Schedule):
    """Linear warm-up from 0 to 1, then a power of the remaining fraction of the run.

    The rate of the first step is 0, as in the code, which sets it when it builds the optimizer.

    Args:
        warmup_steps: steps of the rise; 32000 in the papers.
        warmup_fraction: the rise as a fraction of the run, instead; 0.08 in the papers.
        power: 1 in the papers, which is linear.
        end_factor: value at the end of the run; 0 in the papers.
        run_length_on_resume: see `Schedule`.
    """

    def __init__(
        self,
        warmup_steps: int = 0,
        warmup_fraction: float = 0.0,
        power: float = 1.0,
        end_factor: float = 0.0,
        run_length_on_resume: OnResume = "keep",
    ):
        if warmup_steps and warmup_fraction:
            raise ValueError(
                "warmup_steps and warmup_fraction must not both be set, got "
                f"{warmup_steps} and {warmup_fraction}"
            )
        check_at_least("warmup_steps", warmup_steps, 0)
        check_interval("warmup_fraction", warmup_fraction, 0, 1)
        check_positive("power", power)
        self.warmup_steps, self.warmup_fraction = warmup_steps, warmup_fraction
        self.power, self.end_factor = power, end_factor
        self.run_length_on_resume = run_length_on_resume

    def __call__(self, step: int, run_length: RunLength) -> float:
        total = run_length.total_steps
        warmup = self.warmup_steps or round(self.warmup_fraction * total)
        if warmup and step <= warmup:
            return step / warmup
        if step >= total:
            return self.end_factor
        left = 1 - (step - warmup) / (total - warmup)
        return (1 - self.end_factor) * left**self.power + self.end_factor


class TriStage(Schedule):
    """Linear warm-up, a hold at 1, and an exponential decay: data2vec's learning rate for speech.

    Args:
        fractions: of the run for warm-up, hold and decay; 0.03, 0.9 and 0.07 in data2vec.
        start_factor: value at step 0; 0.01.
        end_factor: value at the end of the decay, and afterwards; 0.01.
        steps: steps of warm-up, hold and decay, instead of `fractions`.
        run_length_on_resume: see `Schedule`.

    Raises:
        ValueError: the fractions do not sum to 1, or a number is out of its range.
    """

    def __init__(
        self,
        fractions: Sequence[float] = (0.03, 0.9, 0.07),
        start_factor: float = 0.01,
        end_factor: float = 0.01,
        steps: Sequence[int] | None = None,
        run_length_on_resume: OnResume = "keep",
    ):
        given = fractions if steps is None else steps
        if len(given) != 3 or min(given) < 0 or (steps is None and not 0.999 < sum(given) < 1.001):
            raise ValueError(
                "fractions must be three numbers with the sum 1, or steps three numbers of at "
                f"least 0, got {list(given)}"
            )
        check_interval("start_factor", start_factor, 0, 1)
        check_interval("end_factor", end_factor, 0, 1, "(]")
        self.fractions, self.steps = tuple(fractions), None if steps is None else tuple(steps)
        self.start_factor, self.end_factor = start_factor, end_factor
        self.run_length_on_resume = run_length_on_resume

    def __call__(self, step: int, run_length: RunLength) -> float:
        warmup, hold, decay = self.steps or (
            int(run_length.total_steps * fraction) for fraction in self.fractions
        )
        if step < warmup:
            return self.start_factor + (1 - self.start_factor) * step / warmup
        if step < warmup + hold:
            return 1.0
        if step <= warmup + hold + decay and decay:
            return math.exp(math.log(self.end_factor) * (step - warmup - hold) / decay)
        return self.end_factor
