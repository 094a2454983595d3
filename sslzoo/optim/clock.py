"""Clock: the number of optimizer steps taken and the length of the run.

Every schedule is a function of these two. They belong to the optimizer: a new one starts at step 0,
and its state dict holds both.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch.optim import Optimizer

from sslzoo.optim.schedule import RunLength


class Clock:
    """Count the steps of one optimizer and keep the run's length.

    Attributes:
        step: optimizer steps taken so far.
        run_length: length of the run.
        resumed: whether the steps of an earlier run are counted too.
    """

    def __init__(self) -> None:
        self.step, self.run_length, self.resumed = 0, RunLength(1, 1), False
        self._started = False
        self._optimizer: weakref.ref[Optimizer] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_optimizer": None}  # a copy of the method has no optimizer yet

    def follows(self, optimizer: Optimizer) -> bool:
        """Whether this optimizer's steps are counted."""
        return self._optimizer is not None and self._optimizer() is optimizer

    def follow(self, optimizer: Optimizer) -> None:
        """Count the steps of this optimizer from now on, and none of those counted before."""
        if self.follows(optimizer):
            return
        if self._started:
            self.step, self.resumed = 0, False
        self._started, self._optimizer = True, weakref.ref(optimizer)
        optimizer.register_step_post_hook(self._tick)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)

    def state_dict(self) -> dict[str, Any]:
        """Step and run length as plain values."""
        return {"step": self.step, "horizon": list(self.run_length)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the step of a saved run, and keep its length."""
        self.step, self.run_length = state["step"], RunLength(*state["horizon"])
        self.resumed, self._started = self.step > 0, True

    def _tick(self, optimizer: Optimizer, *_: Any) -> None:
        self.step += self.follows(optimizer)

    def _save(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if self.follows(optimizer):
            state["clock"] = self.state_dict()

    def _load(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if self.follows(optimizer) and "clock" in state:
            self.load_state_dict(state["clock"])
