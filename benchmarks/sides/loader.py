"""Loader: raw images that two workers hand over, by sslzoo's loader and by torch's alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.rounds import Rounds
from benchmarks.sides.same import images

SOURCE = 256


class Pictures:
    """Batches of consecutive (N, 3, H, W) uint8, as a set that decodes them would give them.

    Args:
        pixels: the images, which a loader walks through repeatedly.
        number: length of the set.
    """

    def __init__(self, pixels: Tensor, number: int) -> None:
        self.pixels, self.number = pixels, number

    def __len__(self) -> int:
        return self.number

    def __getitems__(self, index: list[int]) -> Any:
        from sslzoo.batch import Batch

        first = index[0] % len(self.pixels)
        return Batch([self.pixels[first : first + len(index)].clone()], torch.tensor(index))


def keep(batch: Any) -> Any:
    return batch


def _run(rounds: Rounds, batches: Iterable[Any], number: int) -> None:
    def work() -> dict[str, Any]:
        total = seen = 0
        for batch in batches:
            total += int(batch.views[0][0, 0].sum())
            seen += len(batch.index)
        return {"images": seen, "sum": total} if rounds.number == 0 else {}

    rounds.repeat(work, number)


def ours(rounds: Rounds, size: int, number: int, batch: int, workers: int) -> None:
    from sslzoo.data.loader import TrainLoader
    from sslzoo.data.sampler import KeyedSampler
    from sslzoo.runs.allocation import keep_freed_memory

    keep_freed_memory()
    sampler = KeyedSampler(number, batch, shuffle=False, rank=0, world=1)
    _run(rounds, TrainLoader(Pictures(images(SOURCE, size), number), sampler, workers), number)


def torchs(rounds: Rounds, size: int, number: int, batch: int, workers: int) -> None:
    loader: DataLoader[Any] = DataLoader(
        Pictures(images(SOURCE, size), number),  # type: ignore[arg-type]
        batch_size=batch,
        num_workers=workers,
        collate_fn=keep,
        persistent_workers=True,
    )
    _run(rounds, loader, number)
