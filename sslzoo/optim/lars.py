"""LARS: layer-wise learning rates from the norms of weights and gradients.

You, Gitman and Ginsburg, arXiv 1708.03888. timm's `Lars` divides by |g| + weight_decay |w|; the
code of SimCLR and BYOL divides by |g + weight_decay w|. This implementation follows the latter,
and is tested against golden arrays of both repositories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """LARS update: w <- w - lr * (momentum buffer of trust * (g + weight_decay * w)).

    trust = eta |w| / |g + weight_decay w|, or 1 where either norm is 0 or the group says
    `adapt: False` (see `optim.exempt_bias_and_norm`).

    Args:
        params: parameters or groups; a group may set `adapt`.
        lr: learning rate as used, without scaling by batch size.
        momentum: momentum of the buffer (0.9 in both papers).
        weight_decay: added to the gradient before the trust ratio.
        eta: trust coefficient (0.001 in both papers).
        nesterov: look one step ahead along the buffer.
        momentum_style: "byol" keeps the rate outside the buffer; "simclr" puts lr * trust inside
            it (their `classic_momentum`), which differs while the rate changes; "simclr_popular"
            puts the trust ratio on the buffer's output (their `classic_momentum=False`).
        adapt: whether the trust ratio is used at all.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        nesterov: bool = False,
        momentum_style: Literal["byol", "simclr", "simclr_popular"] = "byol",
        adapt: bool = True,
    ):
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                "lr and weight_decay must be at least 0 and momentum in [0, 1), got lr, momentum, "
                "weight_decay of "
                f"{lr}, {momentum}, {weight_decay}"
            )
        if momentum_style not in ("byol", "simclr", "simclr_popular"):
            raise ValueError(
                "momentum_style must be 'byol', 'simclr' or 'simclr_popular', got "
                f"{momentum_style!r}"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eta": eta,
            "nesterov": nesterov,
            "momentum_style": momentum_style,
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
        lr, momentum, style = group["lr"], group["momentum"], group["momentum_style"]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
        if style == "simclr_popular":
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, grads)
            update = (
                torch._foreach_add(grads, buffers, alpha=momentum) if group["nesterov"] else buffers
            )
            # The trust ratio is computed from the output of the buffer.
            update = self._scaled(weights, list(update), group)
            torch._foreach_add_(weights, update, alpha=-lr)
            return
        scaled = self._scaled(weights, grads, group)
        inside = lr if style == "simclr" else 1.0
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, scaled, alpha=inside)
        update = buffers
        if group["nesterov"]:
            update = torch._foreach_mul(buffers, momentum)
            torch._foreach_add_(update, scaled, alpha=inside)
        torch._foreach_add_(weights, update, alpha=-1.0 if style == "simclr" else -lr)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

    def _scaled(
        self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]
    ) -> list[Tensor]:
        """Scale each gradient by its trust ratio, without a device synchronization."""
        if not group["adapt"]:
            return grads
        w_norms = torch.stack(list(torch._foreach_norm(weights)))
        g_norms = torch.stack(list(torch._foreach_norm(grads)))
        usable = (w_norms > 0) & (g_norms > 0)
        trust = torch.where(usable, group["eta"] * w_norms / g_norms, 1.0)
        return list(torch._foreach_mul(grads, list(trust.unbind())))
