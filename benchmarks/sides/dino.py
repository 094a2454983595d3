"""DINO: head and loss, forward and backward, on given features of two large and some small crops.

Student and teacher heads of 3 layers and 65,536 prototypes, temperatures 0.1 and 0.04, the center
moved at the end; backbones and optimizer are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rounds import Rounds
from benchmarks.sides.same import fill


def _features(batch: int, views: int, width: int, device: str) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(batch, width, generator=draw)
    noise = [0.5 * torch.randn(batch, width, generator=draw) for _ in range(views)]
    return [(image + one).to(device) for one in noise]


def _fill(head: Any) -> None:
    fill(head)
    head.last_layer.weight_g.data.fill_(1.0)


def _run(
    rounds: Rounds, loss: Callable[[], Tensor], head: Any, calls: int, device: str, bf16: bool
) -> None:
    ones = torch.ones(8, 8, device=device)
    ones @ ones  # the library of products is loaded here

    def work() -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for _ in range(calls):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                value = loss()
            value.backward()
            if rounds.number == 0:
                facts = _facts(value, head)
            head.zero_grad()
        return facts

    rounds.repeat(work, calls)


def _facts(value: Tensor, head: Any) -> dict[str, Any]:
    grads = [p.grad for p in head.parameters() if p.grad is not None]
    return {
        "loss": value.item(),
        "gradient": sum(torch.linalg.vector_norm(grad, 1).item() for grad in grads),
        "parameters": sum(grad.numel() for grad in grads),
    }


class _Given(nn.Module):
    """A backbone whose features are its input."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def ours(
    rounds: Rounds,
    batch: int,
    views: int,
    width: int,
    prototypes: int,
    calls: int = 1,
    device: str = "cpu",
    bf16: bool = False,
) -> None:
    from sslzoo.batch import Batch
    from sslzoo.heads import DINOHead
    from sslzoo.memory import commit_memories
    from sslzoo.methods import DINO

    head = DINOHead(width, prototypes)
    _fill(head)
    method = DINO(_Given(width), head).to(device)
    data = Batch(_features(batch, views, width, device), torch.arange(batch, device=device))

    def loss() -> Tensor:
        value = method.losses(data)["dino"]
        commit_memories(method)
        return value

    _run(rounds, loss, head, calls, device, bf16)


def lightly(
    rounds: Rounds,
    batch: int,
    views: int,
    width: int,
    prototypes: int,
    calls: int = 1,
    device: str = "cpu",
    bf16: bool = False,
) -> None:
    """The steps of lightly's DINO example."""
    import copy

    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead

    student = DINOProjectionHead(width, 2048, 256, prototypes)
    _fill(student)
    teacher = DINOProjectionHead(width, 2048, 256, prototypes)
    teacher.load_state_dict(copy.deepcopy(student.state_dict()))
    teacher.requires_grad_(False)
    student, teacher = student.to(device), teacher.to(device)
    criterion = DINOLoss(output_dim=prototypes).to(device)
    features = _features(batch, views, width, device)

    def loss() -> Tensor:
        with torch.no_grad():
            teacher_out = [teacher(x) for x in features[:2]]
        student_out = [student(x) for x in features]
        return criterion(teacher_out, student_out)

    _run(rounds, loss, student, calls, device, bf16)
