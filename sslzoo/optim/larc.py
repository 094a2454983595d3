"""LARC: SGD with each parameter's gradient scaled by the norms of weight and gradient.

You, Gitman and Ginsburg, arXiv 1708.03888, as implemented in NVIDIA's apex.
Reference code: NVIDIA/apex at 2ec84eb, apex/parallel/LARC.py, around torch.optim.SGD.

It differs from LARS: the norms of gradient and decay are added (LARS takes the norm of their sum),
and a weight or gradient of norm 0 gets neither scaling nor decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARC(Optimizer):
    """SGD with momentum on gradients scaled by a trust ratio per parameter.

    g <- ratio * (g + weight_decay * w); buffer <- momentum * buffer + g; w <- w - lr * buffer,
    with ratio = trust_coefficient |w| / (|g| + weight_decay |w| + eps), for every parameter, biases
    and norms too; a group with `adapt: False` uses plain SGD.

    Args:
        params: parameters or groups; a group may set `adapt`.
        lr: learning rate.
        momentum: momentum of the buffer; 0.9 in SwAV.
        weight_decay: added to the gradient; 1e-6 in SwAV.
        trust_coefficient: 0.001 in SwAV.
        clip: use min(ratio, lr) as the rate instead of ratio * lr; False in SwAV.
        eps: added to the norms.
        adapt: whether the ratio is used at all.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        clip: bool = False,
        eps: float = 1e-8,
        adapt: bool = True,
    ):
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                "lr and weight_decay must be at least 0 and momentum in [0, 1), got lr, momentum, "
                "weight_decay of "
                f"{lr}, {momentum}, {weight_decay}"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "clip": clip,
            "eps": eps,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        grads = [p.grad for p in weights]
        buffers = [self._buffer(p) for p in weights]
        if group["adapt"]:
            grads = _scaled(weights, grads, group)
        elif group["weight_decay"]:
            grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        torch._foreach_add_(weights, buffers, alpha=-group["lr"])

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _scaled(weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Add weight decay to each gradient and scale it, without a device synchronization."""
    decay = group["weight_decay"]
    w_norms = torch.stack(list(torch._foreach_norm(weights)))
    g_norms = torch.stack(list(torch._foreach_norm(grads)))
    usable = (w_norms > 0) & (g_norms > 0)
    ratio = group["trust_coefficient"] * w_norms / (g_norms + w_norms * decay + group["eps"])
    if group["clip"]:
        # The rate multiplies it again; with a rate of 0 nothing changes whatever the ratio.
        ratio = (ratio / max(group["lr"], 1e-30)).clamp(max=1)
    ratio = torch.where(usable, ratio, 1.0)
    scaled = list(torch._foreach_mul(grads, list(ratio.unbind())))
    if decay:
        decays = torch.where(usable, decay * ratio, 0.0)
        torch._foreach_add_(scaled, torch._foreach_mul(weights, list(decays.unbind())))
    return scaled
