"""Schedules: values per optimizer step for learning rate, momentum, temperature and decay.

A schedule is a function of the number of optimizer steps taken so far and the run's `RunLength`.
`SSLMethod` saves both in its checkpoints, so a resumed run continues on the same schedule. As a
method's `schedule`, the value multiplies each parameter group's base learning rate.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Literal, NamedTuple

OnResume = Literal["keep", "new"]


class RunLength(NamedTuple):
    """Length of a whole run.

    Attributes:
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of one epoch (after accumulation); 0: unknown.
    """

    total_steps: int
    steps_per_epoch: int

    def steps(self, epochs: float) -> float:
        """Optimizer steps of some epochs.

        Raises:
            ValueError: the length of an epoch is unknown.
        """
        if epochs and not self.steps_per_epoch:
            raise ValueError(
                "trainer.limit_train_batches must be the number of batches per epoch, since the "
                f"training loader has no length and a schedule counts in epochs, got {epochs:g} "
                "epochs of unknown length"
            )
        return epochs * self.steps_per_epoch

    def epoch_start(self, step: int) -> int:
        """Step at which the epoch of step `step` begins."""
        return step - step % int(self.steps(1))

    def fraction(self, step: int) -> float:
        """Fraction of the run completed before step `step`, in [0, 1]."""
        return min(1.0, step / max(1, self.total_steps))


class Schedule(ABC):
    """Abstract schedule: a value per optimizer step, counted from 0, `schedule(step, run_length)`.

    Attributes:
        run_length_on_resume: when a run with another length resumes, a learning rate continues
            along the checkpoint's length ("keep") or along that of the resumed run ("new").
    """

    run_length_on_resume: OnResume = "keep"

    @abstractmethod
    def __call__(self, step: int, run_length: RunLength) -> float: ...


class ConstantSchedule(Schedule):
    """Schedule with the same value at every step."""

    def __init__(self, value: float):
        self.value = value

    def __call__(self, step: int, run_length: RunLength) -> float:
        return self.value


def as_schedule(value: Schedule | float, name: str = "a schedule") -> Schedule:
    """Return a schedule unchanged, and a number as a `ConstantSchedule`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, Real):
        raise ValueError(f"{name} must be a number or a Schedule of sslzoo.optim, got {value!r}")
    return ConstantSchedule(value)


class CosineSchedule(Schedule):
    """Half a cosine from `start` at step 0 to `end` at the last step of the run.

    BYOL's target momentum is CosineSchedule(0.996, 1.0): tau = 1 - (1 - tau0)(cos(pi k/K) + 1)/2.
    """

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end

    def __call__(self, step: int, run_length: RunLength) -> float:
        remaining = (math.cos(math.pi * run_length.fraction(step)) + 1) / 2
        return self.end + (self.start - self.end) * remaining


class MomentumForRun(Schedule):
    """Teacher momentum whose memory fits the length of the run, rising to 1 by half a cosine.

    A teacher of momentum m averages the last 1 / (1 - m) steps. The papers' 0.996 averages 250, of
    runs of 100,000 steps and more; a run of 500 steps would keep its start half the time. The first
    momentum is the smaller of `most` and 1 - 1 / (memory_fraction * K) for a run of K steps: with
    0.05, 0.96 for 500 steps, 0.98 for 1000, and `most` = 0.996 from 5000 on.

    Args:
        most: largest first momentum; 0.996 in BYOL and DINO.
        memory_fraction: steps that the teacher averages at first, as a fraction of the run.
    """

    def __init__(self, most: float = 0.996, memory_fraction: float = 0.05):
        if not 0 <= most < 1 or not 0 < memory_fraction <= 1:
            raise ValueError(
                "most must be in [0, 1) and memory_fraction in (0, 1], got "
                f"{most} and {memory_fraction}"
            )
        self.most, self.memory_fraction = most, memory_fraction

    def __call__(self, step: int, run_length: RunLength) -> float:
        memory = max(1.0, self.memory_fraction * run_length.total_steps)
        first = min(self.most, 1.0 - 1.0 / memory)
        return CosineSchedule(first, 1.0)(step, run_length)


class LinearSchedule(Schedule):
    """Linear from `start` to `end` over some epochs or the whole run, constant outside.

    DINO's teacher temperature, a linspace over its first n epochs, is
    LinearSchedule(0.04, 0.07, epochs=n - 1, every="epoch"): the n-th epoch has the end value.

    Args:
        start: value at the beginning.
        end: value after `delay + epochs`.
        epochs: length of the linear part; None: to the end of the run, as in I-JEPA's momentum.
        every: "step", or "epoch": constant within an epoch.
        delay: epochs before the linear part begins.
        inclusive: whether the last step of the linear part already has the end value, as in
            DINOv2's teacher temperature (numpy's linspace).
    """

    def __init__(
        self,
        start: float,
        end: float,
        epochs: float | None = None,
        every: Literal["step", "epoch"] = "step",
        delay: float = 0.0,
        inclusive: bool = False,
    ):
        self.start, self.end, self.epochs = start, end, epochs
        self.every, self.delay, self.inclusive = every, delay, inclusive

    def __call__(self, step: int, run_length: RunLength) -> float:
        if self.every == "epoch":
            step = run_length.epoch_start(step)
        delay = run_length.steps(self.delay)
        length = run_length.total_steps - delay
        if self.epochs is not None:
            length = run_length.steps(self.epochs)
        done = min(1.0, max(0.0, step - delay) / max(1.0, length - self.inclusive))
        return self.start + (self.end - self.start) * done


class StepSchedule(Schedule):
    """Step decay by `gamma` at each milestone: the learning rate of InstDisc and MoCo.

    Args:
        milestones: epochs at which the value is multiplied.
        gamma: factor at each milestone.
        run_length_on_resume: see `Schedule`.
        warmup_steps: optimizer steps of linear warm-up (AMDIM: 500).
        warmup_epochs: the warm-up in epochs, instead (SimMIM: 10).
        start_factor: value at step 0 if there is warm-up.
        warmup_has_peak: whether the warm-up begins at 1 / warmup_steps, so that its last step
            already has the value 1 (W-MSE).
    """

    def __init__(
        self,
        milestones: Sequence[float] = (120, 160),
        gamma: float = 0.1,
        run_length_on_resume: OnResume = "keep",
        warmup_steps: int = 0,
        warmup_epochs: float = 0.0,
        start_factor: float = 0.0,
        warmup_has_peak: bool = False,
    ):
        if warmup_steps and warmup_epochs:
            raise ValueError(
                "warmup_steps and warmup_epochs must not both be set, got "
                f"{warmup_steps} and {warmup_epochs}"
            )
        self.milestones, self.gamma = sorted(milestones), gamma
        self.run_length_on_resume, self.warmup_steps = run_length_on_resume, warmup_steps
        self.warmup_epochs, self.start_factor = warmup_epochs, start_factor
        self.warmup_has_peak = warmup_has_peak

    def __call__(self, step: int, run_length: RunLength) -> float:
        epochs = step / run_length.steps(1)
        dropped = self.gamma ** sum(epochs >= milestone for milestone in self.milestones)
        warmup = self.warmup_steps or round(run_length.steps(self.warmup_epochs))
        if step < warmup:
            risen = (step + self.warmup_has_peak) / warmup
            return dropped * (self.start_factor + (1 - self.start_factor) * risen)
        return dropped


class RiseAndCosine(Schedule):
    """Linear from `start` to `peak`, half a cosine to `end`, then constant.

    This is the weight of Gram anchoring in DINOv3.
    Reference code: facebookresearch/dinov3 at 6876159, cosine_lr_scheduler.py.

    Args:
        start: value at step 0.
        peak: value at the first step of the cosine.
        end: value at its last step, and afterwards.
        rise_steps: optimizer steps of the linear part.
        cosine_steps: optimizer steps of the cosine; None: the rest of the run.

    Raises:
        ValueError: a number of steps is negative.
    """

    def __init__(
        self,
        start: float,
        peak: float,
        end: float,
        rise_steps: int = 0,
        cosine_steps: int | None = None,
    ):
        if rise_steps < 0 or (cosine_steps or 0) < 0:
            raise ValueError(
                "rise_steps and cosine_steps must be at least 0, got "
                f"{rise_steps} and {cosine_steps}"
            )
        self.start, self.peak, self.end = start, peak, end
        self.rise_steps, self.cosine_steps = rise_steps, cosine_steps

    def __call__(self, step: int, run_length: RunLength) -> float:
        if step < self.rise_steps:
            return self.start + (self.peak - self.start) * step / self.rise_steps
        length = self.cosine_steps
        length = run_length.total_steps - self.rise_steps if length is None else length
        at = step - self.rise_steps
        if at >= length:
            return self.end
        return self.end + (self.peak - self.end) * (
            (1 + math.cos(math.pi * at / max(1, length - 1))) / 2
        )


class StretchedSchedule(Schedule):
    """A schedule of a longer run, which ends before it reaches its last value.

    MSN stretches every schedule by 1.25, and its learning rate and weight decay begin at step 1.

    Args:
        schedule: the schedule; epochs that it names are not stretched.
        factor: length of its run as a multiple of the run's.
        first_step: its step at step 0 of the run.

    Raises:
        ValueError: the factor is below 1, or the first step negative.
    """

    def __init__(self, schedule: Schedule, factor: float = 1.25, first_step: int = 0):
        if not factor >= 1 or first_step < 0:
            raise ValueError(
                "factor must be at least 1 and first_step at least 0, got "
                f"{factor} and {first_step}"
            )
        self.schedule, self.factor, self.first_step = schedule, factor, first_step
        self.run_length_on_resume = schedule.run_length_on_resume

    def __call__(self, step: int, run_length: RunLength) -> float:
        longer = run_length._replace(total_steps=int(self.factor * run_length.total_steps))
        return self.schedule(step + self.first_step, longer)


class SineSchedule(Schedule):
    """A quarter of a sine from `start` to `end`: fast at first, and flat at the end of the run.

    With `every="epoch"`, the last epoch has the value `end`, as in sayannag/TiCo-pytorch.

    Args:
        start: value at step 0.
        end: value at the end.
        every: "step", or "epoch": constant within an epoch.
    """

    def __init__(self, start: float, end: float, every: Literal["step", "epoch"] = "step"):
        self.start, self.end, self.every = start, end, every

    def __call__(self, step: int, run_length: RunLength) -> float:
        done = run_length.fraction(step)
        if self.every == "epoch":
            last = run_length.epoch_start(max(0, run_length.total_steps - 1))
            done = min(1.0, run_length.epoch_start(step) / max(1, last))
        return self.start + (self.end - self.start) * math.sin(math.pi / 2 * done)


class WarmupConstant(Schedule):
    """Linear warm-up from 0 to 1, then constant 1.

    Args:
        warmup_epochs: epochs of the rise (fractions allowed).
        run_length_on_resume: see `Schedule`.
    """

    def __init__(self, warmup_epochs: float = 0.0, run_length_on_resume: OnResume = "keep"):
        self.warmup_epochs, self.run_length_on_resume = warmup_epochs, run_length_on_resume

    def __call__(self, step: int, run_length: RunLength) -> float:
        warmup = round(run_length.steps(self.warmup_epochs))
        return min(1.0, step / warmup) if warmup else 1.0


class WarmupCosine(Schedule):
    """Linear warm-up from `start_factor` to 1, then half a cosine down to `end_factor`.

    With t_w steps of warm-up and T steps in all: t / t_w below t_w, then
    (1 + cos(pi (t - t_w) / (T - t_w))) / 2. The defaults are SimCLR's and BYOL's.

    Args:
        warmup_epochs: t_w in epochs (fractions allowed).
        warmup_fraction: t_w as a fraction of the run, instead.
        start_factor: value at step 0 if there is warm-up.
        end_factor: value at the end.
        every: "step", or "epoch": constant within an epoch.
        run_length_on_resume: see `Schedule`.
        warmup_has_peak: whether the last warm-up step already has the value 1, like the first
            step after it, as in SwAV and DINO (numpy's linspace).
        over_run: whether the cosine is over the whole run, t / T, so that the value jumps down at
            the end of the warm-up, as in SimMIM (timm's CosineLRScheduler without prefix).
    """

    def __init__(
        self,
        warmup_epochs: float = 0.0,
        warmup_fraction: float = 0.0,
        start_factor: float = 0.0,
        end_factor: float = 0.0,
        every: Literal["step", "epoch"] = "step",
        run_length_on_resume: OnResume = "keep",
        warmup_has_peak: bool = False,
        over_run: bool = False,
    ):
        _check_warmup(warmup_epochs, warmup_fraction)
        self.warmup_epochs, self.warmup_fraction = warmup_epochs, warmup_fraction
        self.start_factor, self.end_factor, self.every = start_factor, end_factor, every
        self.over_run = over_run
        self.run_length_on_resume, self.warmup_has_peak = run_length_on_resume, warmup_has_peak

    def __call__(self, step: int, run_length: RunLength) -> float:
        if self.every == "epoch":
            step = run_length.epoch_start(step)
        warmup = _warmup_steps(self.warmup_epochs, self.warmup_fraction, run_length)
        if step < warmup:
            rises = max(1, warmup - self.warmup_has_peak)
            return self.start_factor + (1 - self.start_factor) * step / rises
        before = 0 if self.over_run else warmup
        done = min(1.0, (step - before) / max(1, run_length.total_steps - before))
        return self.end_factor + (1 - self.end_factor) * (1 + math.cos(math.pi * done)) / 2


class WarmupLinear(Schedule):
    """Linear warm-up from 0 to 1, then linear decay to 0: BERT's learning rate.

    Args:
        warmup_epochs: epochs of the rise (fractions allowed).
        warmup_fraction: the warm-up as a fraction of the run, instead.
        run_length_on_resume: see `Schedule`.
    """

    def __init__(
        self,
        warmup_epochs: float = 0.0,
        warmup_fraction: float = 0.0,
        run_length_on_resume: OnResume = "keep",
    ):
        _check_warmup(warmup_epochs, warmup_fraction)
        self.warmup_epochs, self.warmup_fraction = warmup_epochs, warmup_fraction
        self.run_length_on_resume = run_length_on_resume

    def __call__(self, step: int, run_length: RunLength) -> float:
        warmup = _warmup_steps(self.warmup_epochs, self.warmup_fraction, run_length)
        if step < warmup:
            return step / warmup
        total = run_length.total_steps
        return max(0.0, (total - step) / max(1, total - warmup))


class StepWarmup(Schedule):
    """Warm-up (t + 1) / t_w over optimizer steps, then half a cosine to 0, or constant: CLIP's.

    Reference code: mlfoundations/open_clip at 89fb801, src/open_clip_train/scheduler.py.

    Args:
        warmup_steps: t_w; 10,000 in the code, 2,000 reported of the paper.
        then: "cosine", or "constant" up to a cooldown.
        cooldown_steps: last steps of the run, over which a constant value falls to `end_factor`;
            the first of them still has the full value.
        cooldown_power: power of the fall.
        end_factor: value after the cooldown.
        run_length_on_resume: see `Schedule`.

    Raises:
        ValueError: a number of steps is negative, or a cooldown follows a cosine.
    """

    def __init__(
        self,
        warmup_steps: int = 10_000,
        then: Literal["cosine", "constant"] = "cosine",
        cooldown_steps: int = 0,
        cooldown_power: float = 1.0,
        end_factor: float = 0.0,
        run_length_on_resume: OnResume = "keep",
    ):
        if warmup_steps < 0 or cooldown_steps < 0:
            raise ValueError(
                "warmup_steps and cooldown_steps must be at least 0, got "
                f"{warmup_steps} and {cooldown_steps}"
            )
        if then not in ("cosine", "constant") or (then == "cosine" and cooldown_steps):
            raise ValueError(
                "then must be 'cosine', or 'constant', which alone has a cooldown, got "
                f"{then!r} and cooldown_steps={cooldown_steps}"
            )
        self.warmup_steps, self.then = warmup_steps, then
        self.cooldown_steps, self.cooldown_power = cooldown_steps, cooldown_power
        self.end_factor, self.run_length_on_resume = end_factor, run_length_on_resume

    def __call__(self, step: int, run_length: RunLength) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        total = run_length.total_steps
        if self.then == "cosine":
            done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
            return (1 + math.cos(math.pi * min(1.0, done))) / 2
        left = min(1.0, (total - step) / max(1, self.cooldown_steps))
        return self.end_factor + (1 - self.end_factor) * max(0.0, left) ** self.cooldown_power


def _check_warmup(epochs: float, fraction: float) -> None:
    if epochs and fraction:
        raise ValueError(
            f"warmup_epochs and warmup_fraction must not both be set, got {epochs} and {fraction}"
        )
    if epochs < 0 or not 0 <= fraction <= 1:
        raise ValueError(
            "warmup_epochs must be at least 0 and warmup_fraction in [0, 1], "
            f"got {epochs} and {fraction}"
        )


def _warmup_steps(epochs: float, fraction: float, run_length: RunLength) -> int:
    if epochs:
        return round(run_length.steps(epochs))
    return round(fraction * run_length.total_steps)
