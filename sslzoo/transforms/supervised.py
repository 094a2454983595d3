"""The one view of training with labels: a random crop, as SimCLR fine-tunes."""

from __future__ import annotations

from sslzoo.transforms.crop import RandomResizedCrop
from sslzoo.transforms.normalize import Clip, Normalize
from sslzoo.transforms.resample import Interpolation
from sslzoo.transforms.views import Op, View, Views


def crop_view(
    size: int = 224,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    interpolation: Interpolation = "bicubic",
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Views:
    """One view: a random resized crop, flipped half of the time, clipped to [0, 1].

    google-research/simclr at 383d414, `preprocess_for_train` without colour distortion, which is
    what it fine-tunes and trains linear classifiers with. The same deviations as `simclr_views`.

    Args:
        size: pixels of the view.
        scale: range of the crop's share of the area.
        flip: False for digits.
        interpolation: of the crop.
        mean: of each channel; the views of pre-training say which the encoder knows.
        std: likewise.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std come together, got {mean} and {std}")
    ops: list[Op] = [Clip()]
    if mean is not None and std is not None:
        ops.append(Normalize(mean, std))
    crop = RandomResizedCrop(size, scale, interpolation=interpolation, flip=0.5 if flip else 0.0)
    return Views([View(crop, ops)])
