"""Alignment of an encoder on the views that a data module trains with.

Wang and Isola, "Alignment and Uniformity on the Hypersphere", ICML 2020,
https://arxiv.org/abs/2005.10242: how far apart two views of a sample are, on average.
"""

from __future__ import annotations

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from sslzoo.data.datamodule import SampleDataModule
from sslzoo.distributed import gather_rows, rank, world_size
from sslzoo.eval.features import eval_mode
from sslzoo.eval.spectrum import alignment


@torch.no_grad()
def view_alignment(
    encoder: nn.Module, data: SampleDataModule, device: torch.device | str, count: int = 2048
) -> float | None:
    """Mean squared distance of two views' normalized features; collective.

    Args:
        encoder: a batch of views -> (B, D), on the device.
        data: set up; the first two training views in epoch 0 are compared.
        device: of the encoder.
        count: training samples, spread evenly over their set; whatever the number of ranks.

    Returns:
        From 0 (the same) to 4; None where `data.has_pairs` denies that the views can be compared.
    """
    if not data.has_pairs():
        return None
    total = data.num_samples
    rows = torch.linspace(0, total - 1, min(count, total)).round().long()
    own = rows.tensor_split(world_size())[rank()]
    pairs: list[list[Tensor]] = []
    with isolate_rng(), eval_mode(encoder):
        for part in own.split(data.eval_batch_size):
            if len(part):
                both = move_data_to_device(data.preview(part.tolist()).views[:2], device)
                pairs.append([encoder(view).float() for view in both])
    x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
    return alignment(gather_rows(x), gather_rows(y)).item()
