"""ScheduleLR: a torch learning-rate scheduler that follows one of our schedules."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sslzoo.optim.schedule import RunLength, Schedule


class ScheduleLR(LRScheduler):
    """Set each group's rate to base rate * `schedule(step, run_length)` * the group's `lr_scale`.

    It is stepped once per optimizer step. A group marked `constant_rate=True` (see
    `ConstantRateFor`) stays at its base rate; one marked `zero_epochs` (see `ZeroRateFirst`) has
    the rate 0 in its first epochs.

    Args:
        optimizer: its groups' `lr` are the base rates.
        schedule: factor that multiplies the base rates.
        run_length: length of the run.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, run_length: RunLength):
        self.schedule, self.run_length = schedule, RunLength(*run_length)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        factor = self.schedule(self.last_epoch, self.run_length)
        return [
            base
            * group.get("lr_scale", 1.0)
            * (1.0 if group.get("constant_rate", False) else factor)
            * (self.last_epoch >= self.run_length.steps(group.get("zero_epochs", 0.0)))
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "last_lr": [float(lr) for lr in self.get_last_lr()],
            "horizon": list(self.run_length),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved, asked = RunLength(*state_dict["horizon"]), self.run_length
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = self.last_epoch + 1
        self.base_lrs = list(state_dict["base_lrs"])
        self._last_lr = list(state_dict["last_lr"])
        if self.schedule.run_length_on_resume == "keep":
            self.run_length = saved
            if saved != asked:
                rank_zero_info(
                    f"{type(self.schedule).__name__} keeps the {saved.total_steps} steps of the "
                    f"checkpoint's run, not the {asked.total_steps} of this run; to change that, "
                    "set run_length_on_resume: new in the schedule's init_args"
                )
        self._set_rates()

    def follow(self, method: Any) -> None:
        """Set the rates of the method's step before each step of the optimizer, from now on.

        A plain loop has this instead of `step`.
        """

        def before_step(*_: Any) -> None:
            self.last_epoch, self.run_length = method.step, method.run_length
            if self.run_length == RunLength(1, 1):
                raise ValueError(
                    "run_length must be set in a loop without a Trainer, since the learning rate "
                    "follows it; set method.run_length = RunLength(total_steps, steps_per_epoch)"
                )
            self._set_rates()

        self.optimizer.register_step_pre_hook(before_step)

    def set_run_length(self, run_length: RunLength) -> None:
        """Follow a run of another length from now on."""
        self.run_length = run_length
        self._set_rates()

    def _set_rates(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
