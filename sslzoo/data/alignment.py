"""Alignment of an encoder on the views that a data module trains with.

Wang and Isola, "Alignment and Uniformity on the Hypersphere", ICML 2020,
https://arxiv.org/abs/2005.10242: how far apart two views of an image are, on average.
"""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from sslzoo.data.module import ImageDataModule
from sslzoo.distributed import gather_rows, rank, world_size
from sslzoo.eval.features import eval_mode
from sslzoo.eval.spectrum import alignment
from sslzoo.transforms.eval_view import EvalView


@torch.no_grad()
def view_alignment(
    encoder: nn.Module, data: ImageDataModule, device: torch.device | str, count: int = 2048
) -> float | None:
    """Mean squared distance of two views' normalised features; collective.

    Args:
        encoder: (B, C, S, S) -> (B, D), on the device.
        data: set up; the first two views of its transform in epoch 0 are compared.
        device: of the encoder.
        count: training samples, spread evenly over their set; whatever the number of ranks.

    Returns:
        From 0 (the same) to 4; None where the transform does not make two views of one size, or
        normalises them otherwise than `data.eval_view`, so otherwise than the encoder knows them.
    """
    transform, sizes = data.transform, data.transform.sizes
    two = len(transform.views) > 1 and transform.split is None and sizes[0] == sizes[1]
    if not two or _looks(transform.eval_view(sizes[0])) != _looks(data.eval_view):
        return None
    total = data.num_samples
    rows = torch.linspace(0, total - 1, min(count, total)).round().long()
    own = rows.tensor_split(world_size())[rank()]
    pairs: list[tuple[Tensor, Tensor]] = []
    with isolate_rng(), eval_mode(encoder):
        for part in own.split(data.eval_batch_size):
            if len(part):
                first, second = data.preview(part.tolist()).views[:2]
                pairs.append(
                    (encoder(first.to(device)).float(), encoder(second.to(device)).float())
                )
    x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
    return alignment(gather_rows(x), gather_rows(y)).item()


def _looks(view: EvalView) -> tuple[object, ...]:
    mean, std = view.mean, view.std
    return (
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
        view.space,
    )
