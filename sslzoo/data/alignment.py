"""Alignment of an encoder: the mean squared distance of two training views of a sample.

Wang and Isola, "Alignment and Uniformity on the Hypersphere", ICML 2020,
https://arxiv.org/abs/2005.10242.
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
    """Mean squared distance of two views' normalized features; every rank must call it.

    Args:
        encoder: a batch of views -> (B, D), on `device`.
        data: a data module after `setup`; its first two training views in epoch 0 are compared.
        device: device of the encoder.
        count: number of training samples over all ranks, evenly spaced in the training set.

    Returns:
        A value from 0 (identical) to 4; None if `data.has_pairs` is false.
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
