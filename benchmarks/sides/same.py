"""Same: the tensors, images and weights that both sides of a row make from one seed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rounds import Rounds


def images(count: int, size: int) -> Tensor:
    """(count, 3, size, size) uint8: smooth random pictures with some noise."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, max(4, size // 8), max(4, size // 8), generator=draw)
    x = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    x = (x + 0.1 * torch.randn(x.shape, generator=draw)).clamp(0, 1)
    return (x * 255).to(torch.uint8)


def projections(n: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    """Two (n, dim) float32 leaves, each row of the second near that of the first."""
    draw = torch.Generator().manual_seed(0)
    z1 = torch.randn(n, dim, generator=draw)
    z2 = z1 + torch.randn(n, dim, generator=draw)
    return z1.to(device).requires_grad_(), z2.to(device).requires_grad_()


def fill(*modules: nn.Module) -> int:
    """Weights as a function of their place in the order of names; the number of parameters."""
    count = 0
    with torch.no_grad():
        for module in modules:
            place = 0
            for _, p in sorted(module.named_parameters()):
                count += p.numel()
                if p.ndim > 1:
                    draw = torch.Generator().manual_seed(place)
                    p.copy_(torch.randn(p.shape, generator=draw) * math.sqrt(2 / p[0].numel()))
                    place += 1
            for child in module.modules():
                if isinstance(getattr(child, "running_mean", None), Tensor):
                    for name, value in (("weight", 1.0), ("bias", 0.0)):
                        if isinstance(getattr(child, name, None), Tensor):
                            getattr(child, name).fill_(value)
    return count


def view_facts(views: list[Tensor]) -> dict[str, float]:
    """Mean and deviation of all pixels of views (B, 3, H, W) or (3, H, W)."""
    x = torch.stack([view.float() for view in views])
    return {"mean": x.mean().item(), "std": x.std().item()}


def pace(callback: type, rounds: Rounds, steps: int, batch: int, **facts: Any) -> Any:
    """A callback of either Lightning that makes a round of every `steps` batches.

    Args:
        callback: the base class, from the library whose Trainer gets it.
        rounds: answers when to go on.
        steps: batches a round.
        batch: samples a batch.
        facts: sent with the first round, beside `loss`, the loss of its last batch.
    """

    class Pace(callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.done = 0
            if not rounds.begin():
                trainer.should_stop = True

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch_: Any, batch_idx: int
        ) -> None:
            self.done += 1
            if self.done % steps:
                return
            first = {"loss": float(outputs["loss"]), **facts} if rounds.number == 0 else {}
            if not rounds.end(steps * batch, **first):
                trainer.should_stop = True

    return Pace()


def step_views(batch: int, size: int, device: str) -> list[Tensor]:
    """Two views (batch, 3, size, size) float32 of the same pictures, the second with noise."""
    x = images(batch, size).float() / 255 - 0.5
    draw = torch.Generator().manual_seed(1)
    noisy = x + 0.1 * torch.randn(x.shape, generator=draw)
    return [x.to(device), noisy.to(device)]
