"""Clipping of gradients by other norms than the global one of `Trainer(gradient_clip_val=...)`.

Each parameter by its own norm is DINO's and iBOT's, each module by the module's DINOv2's, and most
parameters by a joint norm MSN's. Reference code: facebookresearch/dino at 7c446df, utils.py,
clip_gradients; dinov2 at b8931f7, train.py; msn at 4388dc1, src/msn_train.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


class ClipTogether(Callback):
    """Clip the gradients of all parameters by their joint norm, except those of some parts.

    MSN clips its encoder and head this way, not its prototypes; `Trainer(gradient_clip_val=...)`
    has no exceptions.

    Args:
        max_norm: 3.0 in MSN's code.
        besides: names of the method's modules that are not clipped and do not count in the norm.

    Raises:
        ValueError: see `ClipPerParameter`; or a part is not a module of the method.
    """

    def __init__(self, max_norm: float = 3.0, besides: Sequence[str] = ("prototypes",)):
        if not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {max_norm}")
        self.max_norm, self.besides = max_norm, list(besides)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        known = dict(pl_module.named_modules())
        for name in self.besides:
            if name not in known:
                children = [child for child, _ in pl_module.named_children()]
                raise ValueError(f"besides must be modules of the method {children}, got {name!r}")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        _check_unscaled(trainer, optimizer)
        spared = {p for name in self.besides for p in pl_module.get_submodule(name).parameters()}
        named = (p for group in optimizer.param_groups for p in group["params"])
        nn.utils.clip_grad_norm_([p for p in named if p not in spared], self.max_norm)


def _check_unscaled(trainer: Trainer, optimizer: Optimizer) -> None:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError(
            "gradients must be unscaled to be clipped, got a fused optimizer with precision "
            "16-mixed; use bf16-mixed or set fused: false"
        )
