"""NT-Xent: forward and backward on the same two sets of projections, temperature 0.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.rounds import Rounds
from benchmarks.sides.same import projections

Loss = Callable[[Tensor, Tensor], Tensor]
TEMPERATURE = 0.5


def _run(rounds: Rounds, loss: Loss, n: int, dim: int, calls: int, device: str) -> None:
    small = projections(64, dim, device)
    loss(*small).backward()  # libraries load their kernels here, not inside the first measurement
    z1, z2 = projections(n, dim, device)

    def work() -> dict[str, Any]:
        facts = {}
        for _ in range(calls):
            value = loss(z1, z2)
            value.backward()
            if rounds.number == 0:
                facts = {"loss": value.item(), "gradient": _size(z1.grad) + _size(z2.grad)}
            z1.grad = z2.grad = None
        return facts

    rounds.repeat(work, calls)


def _size(gradient: Tensor | None) -> float:
    assert gradient is not None
    return gradient.abs().sum().item()


def ours(rounds: Rounds, n: int, dim: int, calls: int, device: str = "cpu") -> None:
    from sslzoo.losses import nt_xent

    _run(rounds, lambda z1, z2: nt_xent(z1, z2, TEMPERATURE), n, dim, calls, device)


def lightly(rounds: Rounds, n: int, dim: int, calls: int, device: str = "cpu") -> None:
    from lightly.loss import NTXentLoss

    _run(rounds, NTXentLoss(TEMPERATURE), n, dim, calls, device)


def stable_pretraining(rounds: Rounds, n: int, dim: int, calls: int, device: str = "cpu") -> None:
    from stable_pretraining.losses import NTXEntLoss

    _run(rounds, NTXEntLoss(TEMPERATURE), n, dim, calls, device)
