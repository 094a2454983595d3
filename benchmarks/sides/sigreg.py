"""SIGReg: forward and backward on the same embeddings, with new random directions in each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.rounds import Rounds

Loss = Callable[[Tensor, int], Tensor]  # of embeddings (V, N, D) and the number of the call


def _run(
    rounds: Rounds, loss: Loss, batch: int, views: int, dim: int, calls: int, device: str
) -> None:
    small = torch.randn(views, 4, dim, device=device).requires_grad_()
    loss(small, 0).backward()  # libraries load their kernels here, not inside the first measurement
    draw = torch.Generator().manual_seed(0)
    z = (0.5 + torch.randn(views, batch, dim, generator=draw)).to(device).requires_grad_()
    done = 0

    def work() -> dict[str, Any]:
        nonlocal done
        facts = {}
        for _ in range(calls):
            value = loss(z, done)
            value.backward()
            done += 1
            if rounds.number == 0:
                assert z.grad is not None
                facts = {"loss": value.item(), "gradient": z.grad.abs().sum().item()}
            z.grad = None
        return facts

    rounds.repeat(work, calls)


def ours(
    rounds: Rounds,
    batch: int,
    views: int,
    dim: int,
    directions: int,
    calls: int = 1,
    device: str = "cpu",
) -> None:
    from sslzoo.losses import random_directions, sigreg

    def loss(z: Tensor, step: int) -> Tensor:
        return sigreg(z.transpose(0, 1), random_directions(dim, directions, 0, step, device))

    _run(rounds, loss, batch, views, dim, calls, device)


def lightly(
    rounds: Rounds,
    batch: int,
    views: int,
    dim: int,
    directions: int,
    calls: int = 1,
    device: str = "cpu",
) -> None:
    from lightly.loss.lejepa_loss import SIGReg

    module = SIGReg(num_vectors=directions).to(device)
    _run(rounds, lambda z, step: module(z), batch, views, dim, calls, device)


def stable_pretraining(
    rounds: Rounds,
    batch: int,
    views: int,
    dim: int,
    directions: int,
    calls: int = 1,
    device: str = "cpu",
) -> None:
    from stable_pretraining.methods.lejepa import SlicedEppsPulley

    module = SlicedEppsPulley(directions).to(device)

    def loss(z: Tensor, step: int) -> Tensor:
        """View by view: all views as one sample, its own form, has another value."""
        return torch.stack([module(view) for view in z]).mean()

    _run(rounds, loss, batch, views, dim, calls, device)
