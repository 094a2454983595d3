"""L2SP: penalize the distance to the start weights.

Li, Grandvalet and Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional
Networks, ICML 2018, https://arxiv.org/abs/1802.01483.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from sslzoo.callbacks.freeze import submodule
from sslzoo.checks import check_positive
from sslzoo.sharding import refuse_sharding


class L2SP(Callback):
    """Add weight / 2 * |w - w0|^2 to the loss of any method, for the trainable weights of a module.

    w0 are the weights before the first step; they are in the checkpoint. The gradient is added once
    per optimizer step to that of the global batch, so it is the same for any number of ranks and
    micro-batches. A frozen weight, which has no gradient, is left as it is. The penalty is logged
    as `train/l2_sp`; it is not part of `train/loss`. In the paper it replaces the weight decay of
    the pre-trained weights: set theirs to 0.

    Args:
        weight: alpha of the paper.
        module: name of a module of the method.
    """

    def __init__(self, weight: float, module: str = "backbone") -> None:
        check_positive("weight", weight)
        self.weight, self.module = weight, module
        self.start: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_sharding(trainer.strategy, "L2SP", "keeps whole start weights in its state")
        submodule(pl_module, self.module)
        if stage == "fit":  # the state of a resumed run is loaded later
            self.start = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        named = dict(submodule(pl_module, self.module).named_parameters())
        if not self.start:
            self.start = {n: p.detach().clone() for n, p in named.items() if p.requires_grad}
        self.start = {name: value.to(named[name].device) for name, value in self.start.items()}

    @torch.no_grad()
    def add(self, pl_module: Any) -> Tensor:
        """Add the penalty's gradient; a plain loop calls it before `optimizer.step()`.

        Returns:
            The penalty, a scalar.
        """
        named = dict(submodule(pl_module, self.module).named_parameters())
        moving = [name for name in self.start if named[name].grad is not None]
        if not moving:
            return torch.zeros(())
        weights: list[Tensor] = [named[name] for name in moving]
        grads = [weight.grad for weight in weights if weight.grad is not None]
        starts = [self.start[name] for name in moving]
        distances = torch._foreach_sub(weights, starts)
        torch._foreach_add_(grads, distances, alpha=self.weight)
        return self.weight / 2 * torch.stack(torch._foreach_norm(distances)).square().sum()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        pl_module.log("train/l2_sp", self.add(pl_module))

    def state_dict(self) -> dict[str, Any]:
        return dict(self.start)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = dict(state_dict)
