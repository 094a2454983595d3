"""Learning-rate schedules: base rate times a factor of the optimizer step.

Each is built as `schedule(optimizer, horizon)`, is stepped once per optimizer step, saves its
step and its horizon, and keeps that horizon when a finished run is extended, unless
`horizon_on_resume="new"` asks for the longer one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sslzoo.optim.curve import Horizon


class Schedule(LRScheduler, ABC):
    """Base of our schedules: lr(step) = base lr * factor(step), and times a group's `lr_scale`.

    A group marked `constant_rate=True` (see `ConstantRateFor`) stays at its base rate.

    Args:
        optimizer: its groups' `lr` are the base rates.
        horizon: length of the run in optimizer steps.
        horizon_on_resume: "keep" goes on along the curve of the checkpoint, "new" along that of
            the run that resumes.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        horizon: Horizon,
        horizon_on_resume: Literal["keep", "new"] = "keep",
    ):
        self.horizon = Horizon(*horizon)
        self.horizon_on_resume = horizon_on_resume
        super().__init__(optimizer)

    @abstractmethod
    def factor(self, step: int) -> float:
        """What the base rate is multiplied by at optimizer step `step`, counted from 0."""

    def get_lr(self) -> list[float | Tensor]:
        factor = self.factor(self.last_epoch)
        return [
            base
            * group.get("lr_scale", 1.0)
            * (1.0 if group.get("constant_rate", False) else factor)
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "last_lr": [float(lr) for lr in self.get_last_lr()],
            "horizon": list(self.horizon),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved, asked = Horizon(*state_dict["horizon"]), self.horizon
        self.last_epoch = self._step_count = state_dict["last_epoch"]
        self._step_count += 1
        self.base_lrs = list(state_dict["base_lrs"])
        self._last_lr = list(state_dict["last_lr"])
        if self.horizon_on_resume == "keep":
            self.horizon = saved
            if saved != asked:
                rank_zero_info(
                    f"{type(self).__name__} keeps the horizon of its checkpoint, "
                    f"{saved.total_steps} steps (this run: {asked.total_steps}); to use the new "
                    "one set horizon_on_resume: new in the schedule's init_args"
                )
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr


def _duration(epochs: float, fraction: float, horizon: Horizon, name: str) -> int:
    if epochs and fraction:
        raise ValueError(f"give {name}_epochs or {name}_fraction, got {epochs} and {fraction}")
    if epochs < 0 or not 0 <= fraction <= 1:
        raise ValueError(
            f"{name}_epochs must be >= 0 and {name}_fraction in [0, 1], got {epochs}, {fraction}"
        )
    return (
        round(epochs * horizon.steps_per_epoch) if epochs else round(fraction * horizon.total_steps)
    )


class WarmupCosine(Schedule):
    """Linear warm-up from `start_factor`, then half a cosine down to `end_factor`.

    factor = t / t_w below t_w, (1 + cos(pi (t - t_w) / (T - t_w))) / 2 after it: SimCLR's and
    BYOL's with the defaults.

    Args:
        optimizer: its groups' `lr` are the peak rates.
        horizon: length of the run.
        warmup_epochs: t_w in epochs (fractions allowed).
        warmup_fraction: t_w as a fraction of the run, instead.
        start_factor: factor at step 0, where there is a warm-up.
        end_factor: factor at the end.
        every: "step", or "epoch": constant within an epoch.
        horizon_on_resume: see `Schedule`.
        warmup_has_peak: the last step of the warm-up has the peak rate already, and the first
            one after it again: numpy's linspace, in SwAV and DINO.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        horizon: Horizon,
        warmup_epochs: float = 0.0,
        warmup_fraction: float = 0.0,
        start_factor: float = 0.0,
        end_factor: float = 0.0,
        every: Literal["step", "epoch"] = "step",
        horizon_on_resume: Literal["keep", "new"] = "keep",
        warmup_has_peak: bool = False,
    ):
        self.warmup_epochs, self.warmup_fraction = warmup_epochs, warmup_fraction
        self.warmup_has_peak = warmup_has_peak
        self.start_factor, self.end_factor, self.every = start_factor, end_factor, every
        super().__init__(optimizer, horizon, horizon_on_resume)

    def factor(self, step: int) -> float:
        if self.every == "epoch":
            step -= step % self.horizon.steps_per_epoch
        warmup = _duration(self.warmup_epochs, self.warmup_fraction, self.horizon, "warmup")
        if step < warmup:
            rises = max(1, warmup - self.warmup_has_peak)
            return self.start_factor + (1 - self.start_factor) * step / rises
        done = min(1.0, (step - warmup) / max(1, self.horizon.total_steps - warmup))
        return self.end_factor + (1 - self.end_factor) * (1 + math.cos(math.pi * done)) / 2


class WarmupLinear(Schedule):
    """Linear warm-up from 0, then linearly to 0 at the end: BERT's schedule.

    Args:
        optimizer: its groups' `lr` are the peak rates.
        horizon: length of the run.
        warmup_epochs: in epochs (fractions allowed).
        warmup_fraction: as a fraction of the run, instead.
        horizon_on_resume: see `Schedule`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        horizon: Horizon,
        warmup_epochs: float = 0.0,
        warmup_fraction: float = 0.0,
        horizon_on_resume: Literal["keep", "new"] = "keep",
    ):
        self.warmup_epochs, self.warmup_fraction = warmup_epochs, warmup_fraction
        super().__init__(optimizer, horizon, horizon_on_resume)

    def factor(self, step: int) -> float:
        warmup = _duration(self.warmup_epochs, self.warmup_fraction, self.horizon, "warmup")
        if step < warmup:
            return step / warmup
        total = self.horizon.total_steps
        return max(0.0, (total - step) / max(1, total - warmup))


class Steps(Schedule):
    """The rate times `gamma` at each milestone (in epochs): InstDisc's and MoCo's schedule.

    With `warmup_steps` it rises linearly from 0 over that many optimizer steps first (AMDIM: 500).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        horizon: Horizon,
        milestones: Sequence[float] = (120, 160),
        gamma: float = 0.1,
        horizon_on_resume: Literal["keep", "new"] = "keep",
        warmup_steps: int = 0,
    ):
        self.milestones, self.gamma = sorted(milestones), gamma
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, horizon, horizon_on_resume)

    def factor(self, step: int) -> float:
        epochs = step / self.horizon.steps_per_epoch
        dropped = self.gamma ** sum(epochs >= milestone for milestone in self.milestones)
        return dropped * min(1.0, step / self.warmup_steps) if self.warmup_steps else dropped


class ConstantRate(Schedule):
    """The base rate throughout, after an optional linear warm-up from 0."""

    def __init__(
        self,
        optimizer: Optimizer,
        horizon: Horizon,
        warmup_epochs: float = 0.0,
        horizon_on_resume: Literal["keep", "new"] = "keep",
    ):
        self.warmup_epochs = warmup_epochs
        super().__init__(optimizer, horizon, horizon_on_resume)

    def factor(self, step: int) -> float:
        warmup = round(self.warmup_epochs * self.horizon.steps_per_epoch)
        return min(1.0, step / warmup) if warmup else 1.0
