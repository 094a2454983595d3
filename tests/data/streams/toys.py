"""Small photographs, and their shards, for the tests of this folder."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sslzoo.batch import Batch
from sslzoo.data import ImageShards
from sslzoo.data.loader import TrainLoader
from sslzoo.data.sampler import KeyedSampler
from sslzoo.transforms import RandomResizedCrop, View, Views

CLASSES = ["cat", "dog", "eel"]


def encoded(number: int, kind: str = "JPEG", size: tuple[int, int] = (20, 16)) -> bytes:
    """A photograph of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def write_photos(root: Path, counts: Sequence[int] = (11, 13, 12), split: str = "train") -> Path:
    """One folder per class, with the split in between."""
    for label, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i}.jpg").write_bytes(encoded(1000 * label + i))
    return root


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar file by the standard library alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_tars(root: Path, counts: Sequence[int]) -> list[str]:
    """Shards of so many samples; sample i of all has the image `encoded(i)` and label i % 3."""
    names, number = [], 0
    for shard, count in enumerate(counts):
        members: list[tuple[str, bytes]] = []
        for i in range(number, number + count):
            members += [(f"{i:05d}.jpg", encoded(i)), (f"{i:05d}.cls", str(i % 3).encode())]
        names.append(str(write_tar(root / f"t-{shard:03d}.tar", members)))
        number += count
    return names


def two_crops() -> Views:
    return Views([View(RandomResizedCrop(8), []), View(RandomResizedCrop(6), [])])


def shards(train: Any, **options: Any) -> ImageShards:
    plain = {"transform": two_crops(), "batch_size": 6, "seed": 1, "num_workers": 0}
    plain |= {"shuffle_shards": 2, "shuffle_samples": 7, "num_classes": 3}
    data = ImageShards(train, **{**plain, **options})
    data.setup("fit")
    return data


def batches(
    data: Any, epoch: int = 0, rank: int = 0, world: int = 1, workers: int = 0, first: int = 0
) -> list[Batch]:
    """The batches of a rank, from batch `first` on."""
    sampler = KeyedSampler(
        *(data.num_samples, data.batch_size, data.seed, data.drop_last),
        rank=rank,
        world=world,
        order=data.order(),
    )
    loader = TrainLoader(data.train_source(sampler), sampler, workers)
    sampler.set_epoch(epoch)
    if first:
        loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "position": first})
    found = list(loader)
    loader.close()
    return found
