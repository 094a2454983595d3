"""Abstract base of LARS and LARC: SGD with one momentum buffer per parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]
Tensors = list[Tensor]


class MomentumOptimizer(Optimizer, ABC):
    """Optimizer whose subclass updates one group's weights, given gradients and buffers.

    Args:
        params: parameters or groups.
        defaults: the options, with `lr`, `momentum` and `weight_decay`.

    Raises:
        ValueError: one of these three is outside its range.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]):
        lr, momentum, decay = (defaults[name] for name in ("lr", "momentum", "weight_decay"))
        if lr < 0 or not 0 <= momentum < 1 or decay < 0:
            raise ValueError(
                "lr and weight_decay must be at least 0 and momentum in [0, 1), got lr, momentum, "
                f"weight_decay of {lr}, {momentum}, {decay}"
            )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                grads = [p.grad for p in weights]
                self._update(group, weights, grads, [self._buffer(p) for p in weights])
        return loss

    @abstractmethod
    def _update(self, group: Group, weights: Tensors, grads: Tensors, buffers: Tensors) -> None:
        """Update the buffers and the weights in place."""

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]
