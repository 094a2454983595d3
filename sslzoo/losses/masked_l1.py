"""Masked L1: SimMIM's absolute error over the masked pixels.

Xie et al., CVPR 2022, https://arxiv.org/abs/2111.09886, section 3.4.
Reference code: microsoft/SimMIM at d3e29bc, models/simmim.py; with normalized targets
microsoft/Swin-Transformer at f82860b, models/simmim.py.

Deviations: none. The code's mean is over one GPU's masked pixels, whose number per image is fixed.

Shapes: n local images of H x W pixels and C channels, h x w patches of P x P pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.checks import check_whole, shapes
from sslzoo.distributed import sum_over_ranks, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast


def window_normalize(images: Tensor, window: int) -> Tensor:
    """Normalize every pixel by mean and variance of the window around it, per channel.

    Pixels beyond the border are not counted; the variance is unbiased.

    Args:
        images: (n, C, H, W).
        window: side of the window in pixels, odd; 47 in the code for SwinV2.

    Returns:
        (n, C, H, W), (x - mean) / sqrt(variance + 1e-6).

    Raises:
        ValueError: the window is even or below 3.
    """
    check_whole("target_window", window, 0)
    if window < 3 or window % 2 == 0:
        raise ValueError(f"target_window must be an odd number of at least 3, got {window}")
    half = window // 2

    def mean_of(x: Tensor, inside: bool = True) -> Tensor:
        return F.avg_pool2d(x, window, 1, half, count_include_pad=not inside)

    x = at_least_float32(images)
    with no_autocast(x):
        mean, square = mean_of(x), mean_of(x.square())
        count = mean_of(torch.ones_like(x[:1, :1]), inside=False) * window**2
        variance = ((square - mean.square()) * (count / (count - 1))).clamp_min(0)
        return (x - mean) / (variance + 1e-6).sqrt()


def masked_l1(
    prediction: Tensor, images: Tensor, mask: Tensor, target_window: int | None = None
) -> Tensor:
    """Mean absolute error over the pixels and channels of the masked patches.

    Args:
        prediction: (n, C, H, W).
        images: (n, C, H, W).
        mask: (n, h, w) bool, True where a patch is masked.
        target_window: side of the window of `window_normalize`, which makes the targets; None: the
            images are the targets.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch: the sum over masked pixels and
        channels / (number of masked pixels + 1e-5) / C.

    Raises:
        ValueError: for shapes that do not fit, or a window that is even or below 3.
    """
    if prediction.shape != images.shape or images.dim() != 4:
        got = shapes(prediction, images)
        raise ValueError(f"prediction and images must be (n, C, H, W) of one shape, got {got}")
    patch = images.shape[2] // mask.shape[1] if mask.dim() == 3 and mask.shape[1] else 0
    if mask.shape != (len(images), *(side // max(1, patch) for side in images.shape[2:])):
        raise ValueError(
            f"mask must be (n, h, w), one entry per square patch of {shapes(images)}, got "
            f"{shapes(mask)}"
        )
    with no_autocast(prediction):
        target = at_least_float32(images)
        if target_window is not None:
            target = window_normalize(target, target_window)
        error = (at_least_float32(prediction) - target).abs().sum(1)  # (n, H, W)
        masked = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).to(error.dtype)
        count = sum_over_ranks(masked.sum()) + 1e-5
        return (error * masked).sum() * (world_size() / images.shape[1]) / count
