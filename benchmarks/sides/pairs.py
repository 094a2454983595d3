"""Losses of images and texts: forward and backward on the same pairs, at the first step's scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.rounds import Rounds
from benchmarks.sides.same import projections

Loss = Callable[..., Tensor]  # of images, texts, the log of the scale, and SigLIP's bias
STARTS = {"clip": (2.6593,), "siglip": (2.3026, -10.0)}  # ln(1 / 0.07); ln 10 and the bias


def _run(rounds: Rounds, loss: Loss, kind: str, n: int, dim: int, calls: int, device: str) -> None:
    def leaves(count: int) -> list[Tensor]:
        pairs = [normalize(z.detach(), dim=1) for z in projections(count, dim, device)]
        scalars = [torch.tensor(start, device=device) for start in STARTS[kind]]
        return [x.requires_grad_() for x in (*pairs, *scalars)]

    loss(*leaves(64)).backward()  # kernels are loaded here, not inside the first measurement
    given = leaves(n)

    def work() -> dict[str, Any]:
        facts = {}
        for _ in range(calls):
            value = loss(*given)
            gradients = torch.autograd.grad(value, given)
            if rounds.number == 0:
                sizes = [gradient.abs().sum().item() for gradient in gradients]
                facts = {"loss": value.item(), "gradient": sizes[0] + sizes[1], "scale": sizes[2]}
        return facts

    rounds.repeat(work, calls)


def ours(rounds: Rounds, kind: str, n: int, dim: int, calls: int = 1, device: str = "cpu") -> None:
    from sslzoo.losses import clip_loss, siglip_loss

    loss = {"clip": clip_loss, "siglip": siglip_loss}[kind]
    _run(rounds, loss, kind, n, dim, calls, device)


def open_clip(
    rounds: Rounds, kind: str, n: int, dim: int, calls: int = 1, device: str = "cpu"
) -> None:
    from open_clip.loss import ClipLoss, SigLipLoss

    module = {"clip": ClipLoss, "siglip": SigLipLoss}[kind]()

    def loss(images: Tensor, texts: Tensor, log_scale: Tensor, *bias: Tensor) -> Tensor:
        return module(images, texts, log_scale.exp(), *bias)

    _run(rounds, loss, kind, n, dim, calls, device)
