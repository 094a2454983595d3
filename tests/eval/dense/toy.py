"""Images of a colored square on a noisy ground, with masks, as loaders in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.distributed import rank, world_size
from sslzoo.eval.loaders import EvalLoaders

NUM_CLASSES, SIDE = 3, 16


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, 3, S, S) in [0, 1] and masks (n, S, S) of 0, 1, 2 and 255."""
    draws = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(count, 3, SIDE, SIDE, generator=draws)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    for row in range(count):
        top, left = torch.randint(1, SIDE - 8, (2,), generator=draws).tolist()
        kind = row % 2
        box = slice(top, top + 8), slice(left, left + 8)
        images[(row, kind, *box)] += 0.6
        masks[(row, *box)] = kind + 1
    masks[:, 0] = 255
    return images, masks


def identity(batch: Batch) -> Batch:
    return batch


def batches(count: int, seed: int, size: int) -> list[Batch]:
    images, masks = drawn(count, seed)
    parts = zip(images.split(size), torch.arange(count).split(size), masks.split(size), strict=True)
    return [Batch([x], index, label) for x, index, label in parts][rank() :: world_size()]


def loaders(train: int = 11, test: int = 7, size: int = 2) -> EvalLoaders:
    bank, query = batches(train, 0, size), batches(test, 1, size)
    return EvalLoaders(bank, query, identity, NUM_CLASSES, sharded=True)
