"""Views of supervised training: the fine-tuning of SimCLR and MAE."""

from __future__ import annotations

from sslzoo.transforms.image.color import ColorJitter
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.erasing import RandomErasing
from sslzoo.transforms.image.layout import Op
from sslzoo.transforms.image.normalize import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Clip,
    Normalize,
    normalize_ops,
)
from sslzoo.transforms.image.rand_augment import RandAugment
from sslzoo.transforms.image.resample import Interpolation
from sslzoo.transforms.image.views import View, Views


def crop_view(
    size: int = 224,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    interpolation: Interpolation = "bicubic",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    jitter: float = 0.0,
) -> Views:
    """SimCLR's view for fine-tuning and linear classifiers: crop, flip 0.5, clip to [0, 1].

    Code: google-research/simclr at 383d414, `preprocess_for_train` without color distortion.

    Deviations: those of `simclr_views`.

    Args:
        size: side of the view in pixels.
        scale: range of the crop's fraction of the image area.
        flip: False for digits.
        interpolation: filter of the crop.
        mean: mean per channel, as in pre-training; None: no normalization.
        std: standard deviation per channel.
        jitter: half-width of brightness, contrast and saturation, which always change (0.4 in BEiT,
            before its crop); 0 in SimCLR.
    """
    ops: list[Op] = [ColorJitter(jitter, jitter, jitter, 0.0, 1.0)] if jitter else []
    ops += [Clip(), *normalize_ops(mean, std)]
    crop = RandomResizedCrop(size, scale, interpolation=interpolation, flip=0.5 if flip else 0.0)
    return Views([View(crop, ops)])


def mae_fine_tune_views(
    size: int = 224,
    scale: tuple[float, float] = (0.08, 1.0),
    magnitude: float = 9.0,
    magnitude_std: float = 0.5,
    erasing: float = 0.25,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Views:
    """MAE's view for fine-tuning.

    He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022,
    https://arxiv.org/abs/2111.06377; code facebookresearch/mae at efb2a80, util/datasets.py, which
    calls timm's `create_transform`.

    Order: crop (area 0.08 to 1, bicubic), flip 0.5, RandAugment (two operations, each with
    probability 0.5, magnitude 9 with standard deviation 0.5, bicubic, filled with the mean),
    normalize, random erasing 0.25 with noise.

    Deviations: on a GPU the crop is rounded to bytes once; PIL rounds after each of two passes.

    Args:
        size: side of the view in pixels.
        scale: range of the crop's fraction of the image area.
        magnitude: RandAugment's magnitude, 0 to 10.
        magnitude_std: standard deviation of the magnitude.
        erasing: probability of erasing a rectangle.
        mean: mean per channel.
        std: standard deviation per channel.
    """
    red, green, blue = (min(255, round(255 * value)) for value in mean)
    ops: list[Op] = [
        RandAugment(magnitude, magnitude_std, fill=(red, green, blue)),
        Normalize(mean, std),
        RandomErasing(erasing),
    ]
    return Views([View(RandomResizedCrop(size, scale, interpolation="bicubic"), ops)])
