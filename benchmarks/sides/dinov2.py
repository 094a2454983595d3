"""DINOv2: head and losses of class tokens and masked patches, on given features and masks.

One head of 65,536 prototypes for both, temperatures 0.1 and 0.07, KoLeo, and both centers moved at
the end; backbones and optimizer are left out. Half of the large crops have masks of 0.1 to 0.5 of
their 196 patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rounds import Rounds
from benchmarks.sides.dino import _fill, _run

SIDE = 14  # patches per side of a large crop


def _data(batch: int, views: int, width: int, device: str) -> tuple[list[Tensor], Tensor]:
    """Features of the crops, one per patch, and masks of the large crops, crop by crop."""
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(batch, width, 1, 1, generator=draw)
    sizes = [SIDE, SIDE] + [SIDE // 2] * (views - 2)
    noise = [torch.randn(batch, width, s, s, generator=draw) for s in sizes]
    crops = [(image + one).to(device) for one in noise]
    ratios = torch.linspace(0.1, 0.5, batch)  # one crop in two
    count = torch.cat((ratios, torch.zeros(batch))) * SIDE * SIDE
    order = torch.rand(2 * batch, SIDE * SIDE, generator=draw).argsort(dim=1)
    return crops, (order < count[:, None]).to(device)


class _Given(nn.Module):
    """A backbone whose features are its input, and their mean."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features, self.num_prefix, self.patch_size = num_features, 1, 1
        self.cls_token = True
        self.mask_token = True

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward_tokens(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.cat((self(x)[:, None], x.flatten(2).mT), dim=1)


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
    from sslzoo.masks import StratifiedBlockMasks
    from sslzoo.memory import commit_memories
    from sslzoo.methods import DINOv2

    class Given(StratifiedBlockMasks):
        def bounds(self, strata: Sequence[int], total: int, num_patches: int) -> list[int]:
            return counts

        def __call__(self, *args: Any) -> Tensor:
            return masks

    crops, masks = _data(batch, views, width, device)
    counts: list[int] = masks.sum(dim=1).tolist()
    head = DINOHead(width, prototypes, norm_last_layer=False)
    _fill(head)
    method = DINOv2(_Given(width), head, masks=Given()).to(device)
    data = Batch(crops, torch.arange(batch, device=device))

    def loss() -> Tensor:
        value = torch.stack(list(method.losses(data).values())).sum()
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
    """The steps of lightly's DINOv2 example."""
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
    from lightly.models.modules import DINOProjectionHead

    student = DINOProjectionHead(width, 2048, 256, prototypes, norm_last_layer=False)
    _fill(student)
    teacher = DINOProjectionHead(width, 2048, 256, prototypes, norm_last_layer=False)
    teacher.load_state_dict(student.state_dict())
    student, teacher = student.to(device), teacher.requires_grad_(False).to(device)
    of_classes = DINOLoss(output_dim=prototypes, teacher_temp=0.07, warmup_teacher_temp_epochs=0)
    of_patches = IBOTPatchLoss(output_dim=prototypes, teacher_temp=0.07)
    of_classes, of_patches, spread = of_classes.to(device), of_patches.to(device), KoLeoLoss()
    crops, masks = _data(batch, views, width, device)
    classes = [crop.mean((2, 3)) for crop in crops]
    patches = torch.cat([crop.flatten(2).mT for crop in crops[:2]])[masks]

    def loss() -> Tensor:
        with torch.no_grad():
            teacher_out = [teacher(x) for x in classes[:2]]
            teacher_patches = teacher(patches)
        student_out = [student(x) for x in classes]
        value = of_classes(teacher_out, student_out, teacher_temp=0.07)
        grids = masks.unflatten(1, (SIDE, SIDE))
        value = value + of_patches(teacher_patches, student(patches), grids)
        return value + 0.1 * sum(spread(x) for x in classes[:2])  # type: ignore[no-any-return]

    _run(rounds, loss, student, calls, device, bf16)
