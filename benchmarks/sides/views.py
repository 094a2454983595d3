"""Views: SimCLR's two views of an image, by sslzoo, lightly and kornia.

`family="peers"` is the distribution that lightly and kornia draw from (bilinear crop, torchvision's
jitter, ImageNet normalization); "paper" is sslzoo's default, SimCLR's own. Ours keeps freed memory,
as `sslzoo fit` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rounds import Rounds, meter_of
from benchmarks.sides.same import images, view_facts

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def strength(size: int) -> float:
    """Of the color jitter: 0.5 for small images, as both libraries recommend."""
    return 0.5 if size <= 64 else 1.0


def _facts(rounds: Rounds, batches: Iterable[list[Tensor]]) -> dict[str, Any]:
    """Make all batches of views; of the first round, what they average to."""
    if rounds.number == 0:
        return view_facts([view for views in batches for made in views for view in made])
    for _ in batches:  # kept no longer than a step of training keeps them
        pass
    return {}


def ours(
    rounds: Rounds,
    size: int,
    source: int,
    count: int,
    batch: int,
    family: str,
    device: str = "cpu",
    workers: int = 0,
) -> None:
    """In this process, or by `ViewsInWorkers` in those of sslzoo's loader."""
    from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
    from sslzoo.data.image.image_set import ArrayImages
    from sslzoo.random import sample_keys
    from sslzoo.runs.allocation import keep_freed_memory
    from sslzoo.transforms import simclr_views
    from sslzoo.transforms.image.blur import GaussianBlur
    from sslzoo.transforms.image.color import ColorJitter, Grayscale
    from sslzoo.transforms.image.crop import RandomResizedCrop
    from sslzoo.transforms.image.layout import Op
    from sslzoo.transforms.image.normalize import normalize_ops
    from sslzoo.transforms.image.views import View, Views

    keep_freed_memory()
    blur = size > 64
    if family == "paper":
        views = simclr_views(size, strength(size), blur)
    else:
        s = strength(size)
        jitter = ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, 0.8, "torchvision")
        ops: list[Op] = [jitter, Grayscale(0.2), *[GaussianBlur(0.5)] * blur]
        crop = RandomResizedCrop(size, (0.08, 1.0), interpolation="bilinear")
        views = Views([View(crop, [*ops, *normalize_ops(MEAN, STD)])] * 2)
    x = images(count, source).to(device)

    class Pictures(ImageDataModule):
        def read(self) -> ImageSets:
            return ImageSets(ArrayImages(x, None), None, None)

    data = Pictures(views, batch, None, batch, workers, 0, 1.0, "query", drop_last=False)
    data.views_in_workers = workers > 0
    data.setup("fit")
    loader = data.train_dataloader()

    def work() -> dict[str, Any]:
        if workers:
            loader.sampler.set_epoch(rounds.number)
            return _facts(rounds, (ready.views for ready in loader))
        parts = torch.arange(count, device=device).split(batch)
        keys = (sample_keys(0, rounds.number, index) for index in parts)
        return _facts(rounds, (views(x[i], k) for i, k in zip(parts, keys, strict=True)))

    rounds.repeat(work, 2 * count)


def lightly(
    rounds: Rounds,
    size: int,
    source: int,
    count: int,
    batch: int,
    family: str,
    workers: int,
    device: str = "cpu",
) -> None:
    """SimCLRTransform on PIL images: in this process, or in a DataLoader's workers.

    It works on CPUs alone, whatever the device; its views stay there.
    """
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    torch.manual_seed(0)
    blur = 0.5 if size > 64 else 0.0
    transform = SimCLRTransform(input_size=size, cj_strength=strength(size), gaussian_blur=blur)
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images(count, source)]

    class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return count

        def __getitem__(self, i: int) -> list[Tensor]:
            return transform(pictures[i])

    loader = torch.utils.data.DataLoader(
        Pictures(), batch_size=batch, num_workers=workers, persistent_workers=workers > 0
    )

    def work() -> dict[str, Any]:
        return _facts(rounds, loader)

    rounds.repeat(work, 2 * count)


def _kornia(size: int) -> nn.Module:
    import kornia.augmentation as K

    s = strength(size)
    steps: list[Any] = [
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0), resample="bilinear"),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),
        K.RandomGrayscale(p=0.2),
    ]
    if size > 64:
        steps.append(K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5))
    steps.append(K.Normalize(torch.tensor(MEAN), torch.tensor(STD)))
    return K.AugmentationSequential(*steps, same_on_batch=False)


def _fastest(device: str, size: int, batch: Tensor) -> nn.Module:
    """The transform as it is, which draws on the CPU, or moved to a GPU, where it draws there."""
    if device == "cpu":
        return _kornia(size)
    seconds: dict[nn.Module, float] = {}
    failed: list[Exception] = []
    for place in ("cpu", device):
        transform = _kornia(size).to(place)
        try:
            seconds[transform] = min(_seconds(transform, batch, device) for _ in range(4))
        except (RuntimeError, TypeError, ValueError) as error:  # some generators know one place
            failed.append(error)
    if not seconds:
        raise failed[-1]
    return min(seconds, key=seconds.__getitem__)


def _seconds(transform: nn.Module, batch: Tensor, device: str) -> float:
    meter = meter_of(device)
    meter.start()
    transform(batch)
    return meter.stop()[0]


def kornia(
    rounds: Rounds,
    size: int,
    source: int,
    count: int,
    batch: int,
    family: str,
    device: str = "cpu",
) -> None:
    torch.manual_seed(0)
    x = images(count, source).to(device)
    transform = _fastest(device, size, x[:batch].float() / 255)

    @torch.no_grad()
    def work() -> dict[str, Any]:
        parts = (part.float() / 255 for part in x.split(batch))
        return _facts(rounds, ([transform(part), transform(part)] for part in parts))

    rounds.repeat(work, 2 * count)
