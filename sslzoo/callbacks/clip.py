"""Clipping of each parameter's gradient by its own norm, or of each module's by the module's.

The first is DINO's and iBOT's, the second DINOv2's; `Trainer(gradient_clip_val=...)` clips by the
global norm. Reference code: facebookresearch/dino at 7c446df, utils.py, clip_gradients; dinov2 at
b8931f7, train.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer


@torch.no_grad()
def clip_per_parameter(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale every gradient down to a norm of at most `max_norm`, in-place, without host sync."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    norms = torch.stack(list(torch._foreach_norm(grads)))
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, list(factors.unbind()))


class ClipPerParameter(Callback):
    """Clip before each optimizer step, after all micro-batches are accumulated.

    Args:
        max_norm: 3.0 in DINO's and iBOT's code, 0 in some of their recipes, which
            means no clipping: omit the callback.

    Raises:
        ValueError: the norm is not positive; or the optimizer is fused with 16-mixed precision,
            where the gradients are not unscaled yet at this point.
    """

    def __init__(self, max_norm: float = 3.0):
        if not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {max_norm}")
        self.max_norm = max_norm

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        _check_unscaled(trainer, optimizer)
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        clip_per_parameter(parameters, self.max_norm)


@torch.no_grad()
def clip_per_module(method: nn.Module, max_norm: float) -> list[Tensor]:
    """Scale each child module's gradients down to a joint norm of at most `max_norm`, in-place.

    Returns:
        The norm () before, for each child with a gradient.
    """
    children = [
        [p for p in child.parameters() if p.grad is not None] for child in method.children()
    ]
    return [nn.utils.clip_grad_norm_(params, max_norm) for params in children if params]


class ClipPerModule(Callback):
    """Clip backbone and heads separately before each optimizer step.

    Args:
        max_norm: 3.0 in DINOv2's code.

    Raises:
        ValueError: see `ClipPerParameter`.
    """

    def __init__(self, max_norm: float = 3.0):
        if not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {max_norm}")
        self.max_norm = max_norm

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        _check_unscaled(trainer, optimizer)
        clip_per_module(pl_module, self.max_norm)


def _check_unscaled(trainer: Trainer, optimizer: Optimizer) -> None:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError(
            "gradients must be unscaled to be clipped, got a fused optimizer with precision "
            "16-mixed; use bf16-mixed or set fused: false"
        )
