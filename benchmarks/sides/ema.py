"""EMA: one step of a teacher that is a ResNet with an MLP of 2048-4096-256 on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.rounds import Rounds

MOMENTUM = 0.996


def _mlp(width: int) -> nn.Module:
    layers = [nn.Linear(width, 4096), nn.BatchNorm1d(4096), nn.ReLU(), nn.Linear(4096, 256)]
    return nn.Sequential(*layers)


def _set(module: nn.Module, value: float) -> list[nn.Parameter]:
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)
    return list(module.parameters())


def _run(
    rounds: Rounds, student: nn.Module, teacher: nn.Module, update: Callable[[], None], calls: int
) -> None:
    _set(student, 1.0)
    moved = _set(teacher, 0.0)

    def work() -> dict[str, Any]:
        for _ in range(calls):
            update()
        if rounds.number > 0:
            return {}
        count = sum(p.numel() for p in moved)
        total = sum(p.double().sum().item() for p in moved)
        return {"parameters": count, "mean": total / count}

    rounds.repeat(work, calls)


def ours(rounds: Rounds, net: str, calls: int, device: str = "cpu") -> None:
    """The EMA callback as a Trainer calls it."""
    from sslzoo.backbones import timm_backbone
    from sslzoo.callbacks.ema import EMA
    from sslzoo.heads import MLP
    from sslzoo.methods import BYOL
    from sslzoo.optim import ConstantSchedule

    backbone = timm_backbone(net)
    projector = MLP([backbone.num_features, 4096, 256])  # the layers of _mlp
    method = BYOL(backbone, projector, nn.Linear(256, 256)).to(device)
    students, teachers = zip(*method.teacher_pairs(), strict=True)
    ema = EMA(ConstantSchedule(MOMENTUM), "after_step")
    ema.on_train_start(None, method)  # type: ignore[arg-type]
    student, teacher = nn.ModuleList(students), nn.ModuleList(teachers)
    _run(rounds, student, teacher, lambda: ema.update(method, 0), calls)


def _pairs(net: str, device: str) -> tuple[nn.ModuleList, nn.ModuleList]:
    import torchvision

    backbone = getattr(torchvision.models, net)()
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    student = nn.ModuleList([backbone, _mlp(width)]).to(device)
    return student, copy.deepcopy(student).requires_grad_(False)  # type: ignore[return-value]


def lightly(rounds: Rounds, net: str, calls: int, device: str = "cpu") -> None:
    """`update_momentum` for the backbone and for the head, as in lightly's BYOL example."""
    from lightly.models.utils import update_momentum

    student, teacher = _pairs(net, device)

    def update() -> None:
        for a, b in zip(student, teacher, strict=True):
            update_momentum(a, b, m=MOMENTUM)

    _run(rounds, student, teacher, update, calls)


def per_parameter(rounds: Rounds, net: str, calls: int, device: str = "cpu") -> None:
    """solo-learn's formula, written here anew as the plain loop over parameters that it is."""
    student, teacher = _pairs(net, device)

    @torch.no_grad()
    def update() -> None:
        for a, b in zip(student.parameters(), teacher.parameters(), strict=True):
            b.data = MOMENTUM * b.data + (1 - MOMENTUM) * a.data

    _run(rounds, student, teacher, update, calls)
