"""channel_views: views of images of any number of channels, for every method.

The other recipes are their papers' and jitter colors, which only red, green and blue have.
"""

from __future__ import annotations

from collections.abc import Sequence

from sslzoo.checks import check_interval, check_view_kinds
from sslzoo.transforms.image.blur import GaussianBlur
from sslzoo.transforms.image.channels import (
    BrightnessContrast,
    ChannelDropout,
    ChannelShuffle,
    GaussianNoise,
    QuarterTurns,
)
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.layout import Op
from sslzoo.transforms.image.normalize import normalize_ops
from sslzoo.transforms.image.resample import Interpolation
from sslzoo.transforms.image.solarize import Solarize
from sslzoo.transforms.image.views import View, Views


def channel_views(
    sizes: Sequence[int] = (224,),
    counts: Sequence[int] = (2,),
    scales: Sequence[tuple[float, float]] = ((0.2, 1.0),),
    brightness: float = 0.4,
    contrast: float = 0.4,
    per_channel: bool = True,
    noise: float = 0.02,
    dropout: float = 0.0,
    shuffle: float = 0.0,
    blur: float = 0.5,
    solarize: float = 0.0,
    flip: bool = True,
    turn: bool = False,
    interpolation: Interpolation = "bilinear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Views:
    """Views of images with any number of channels: bands, stains, detectors, slices.

    Order: crop, flip 0.5, quarter turns; with probability 0.8 brightness and contrast; channel
    dropout; channel shuffle; blur (kernel a tenth of the height, sigma 0.1 to 2); solarization;
    noise; normalize. The strengths are ours, not a paper's: the crop, blur and probability are
    SimCLR's, and the jitter is that of MoCo v2 without saturation and hue.

    Args:
        sizes: side of the views in pixels, per kind of view: `[224]`, or `[224, 96]` for
            multi-crop.
        counts: number of views per kind: `[2]`, or `[2, 8]`.
        scales: range of the crop's fraction of the image area, per kind.
        brightness: half-width of the brightness factor's range about 1.
        contrast: half-width of the contrast's range about 1.
        per_channel: whether each channel has its own brightness and contrast.
        noise: largest standard deviation of the noise, of pixels in 0..1.
        dropout: probability per channel to be set to 0.
        shuffle: probability per sample that its channels are permuted, which teaches an encoder to
            ignore which band is which.
        blur: probability per view.
        solarize: probability per view that values above 1/2 are inverted.
        flip: whether to flip horizontally.
        turn: whether to rotate by quarter turns, for images without an up and a down (from above,
            of tissue).
        interpolation: filter of the crop.
        mean: mean per channel; `sslzoo data check` measures it. None: no normalization.
        std: standard deviation per channel.

    Raises:
        ValueError: `sizes`, `counts` and `scales` have different lengths, or a value is outside
            its range.
    """
    check_view_kinds(sizes, counts, scales)
    for name, p in (("blur", blur), ("solarize", solarize)):
        check_interval(name, p, 0, 1)
    ops: list[Op] = [QuarterTurns()] if turn else []
    if brightness or contrast:
        ops.append(BrightnessContrast(brightness, contrast, 0.8, per_channel))
    ops += [ChannelDropout(dropout)] if dropout else []
    ops += [ChannelShuffle(shuffle)] if shuffle else []
    ops += [GaussianBlur(blur)] if blur else []
    ops += [Solarize(solarize)] if solarize else []
    ops += [GaussianNoise(noise)] if noise else []
    ops += normalize_ops(mean, std)
    views = []
    for size, count, scale in zip(sizes, counts, scales, strict=True):
        crop = RandomResizedCrop(
            size, scale, interpolation=interpolation, flip=0.5 if flip else 0.0
        )
        views += [View(crop, ops)] * count
    return Views(views)
