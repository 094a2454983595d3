"""Losses of data2vec: regression of the mean of the teacher's normalized top layers.

Baevski, Hsu, Xu, Babu, Gu and Auli, data2vec, ICML 2022, https://arxiv.org/abs/2202.03555.
Reference code: facebookresearch/fairseq at 3d262bb, examples/data2vec/models/data2vec_audio.py
(speech), and facebookresearch/data2vec_vision at af9a363, beit/engine_for_cyclical.py (images).

Deviations:
    padding: padded frames are in no statistic; in the code they are.
    ranks: the mean is over the masked positions of the global batch. The code for speech has it,
        too; that for images averages the means of the GPUs.
    "group" and "instance" without an "instance" or "batch" norm of the layers: over the time of
        each sequence by default; the code's states are (T, B, D) then, so that it normalizes over
        the batch, which `transposed` does: over that of all ranks, where the code's is one GPU's.

Shapes: n local samples, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_at_least, check_choice, shapes
from sslzoo.distributed import global_sum, sum_over_ranks, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast

TargetNorm = Literal["none", "layer", "instance", "batch", "group"]


def normalize_targets(
    x: Tensor, norm: TargetNorm, real: Tensor | None = None, transposed: bool = False
) -> Tensor:
    """Normalize to mean 0 and variance 1 (biased, plus 1e-5), without weights.

    Args:
        x: (n, T, D).
        norm: "layer": each position over its channels; "instance": each sample's channels over
            time; "batch": the channels over all samples, of all ranks, and time; "group": each
            sample over time and channels; "none": as it is.
        real: (n, T) bool; other positions are not in the statistics over time. None: all are.
        transposed: whether "instance" and "group" are over the samples of all ranks instead of
            time, at each position.

    Returns:
        (n, T, D) in float32 at least.
    """
    check_choice("norm", norm, get_args(TargetNorm))
    x = at_least_float32(x)
    if norm == "none":
        return x
    if norm == "layer":
        return F.layer_norm(x, x.shape[2:])
    inside = (torch.ones_like(x[..., 0]) if real is None else real.to(x.dtype))[..., None]
    over = {"instance": (1,), "batch": (0, 1), "group": (1, 2)}[norm]
    swapped = transposed and norm != "batch"
    over = tuple(0 if d == 1 else d for d in over) if swapped else over
    channels = x.shape[2] if norm == "group" else 1

    def mean(values: Tensor) -> Tensor:
        total = (values * inside).sum(over, keepdim=True)
        count = inside.sum(tuple(d for d in over if d < 2), keepdim=True) * channels
        if norm == "batch" or swapped:
            total, count = global_sum(total), global_sum(count)
        return total / count.clamp_min(1)

    centered = x - mean(x)
    return centered * (mean(centered.square()) + 1e-5).rsqrt()


def average_targets(
    layers: Sequence[Tensor],
    layer_norm: TargetNorm = "instance",
    norm: TargetNorm = "none",
    real: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """Mean of the normalized layers, which is then normalized.

    Args:
        layers: K times (n, T, D), the teacher's top layers.
        layer_norm: norm of each layer, see `normalize_targets`; "instance" for speech, "layer" for
            images.
        norm: norm of the mean; "none" for speech, "layer" for images.
        real: (n, T) bool; see `normalize_targets`.
        transposed: see `normalize_targets`; as the code for speech and text does without an
            "instance" or "batch" norm of the layers. All ranks need equal T.

    Returns:
        (n, T, D) in float32 at least.

    Raises:
        ValueError: an unknown norm, or `transposed` beside an "instance" or "batch" norm of the
            layers.
    """
    if transposed and layer_norm in ("instance", "batch"):
        raise ValueError(
            f"layer_norm must be 'none', 'layer' or 'group' with transposed, got {layer_norm!r}"
        )
    with no_autocast(layers[0]):
        mean = torch.stack(
            [normalize_targets(x, layer_norm, real, transposed) for x in layers]
        ).mean(0)
        return normalize_targets(mean, norm, real, transposed)


def masked_regression(
    predictions: Tensor, targets: Tensor, masked: Tensor, scale: float, beta: float = 0.0
) -> Tensor:
    """Distance to the targets, summed over channels, times `scale`; mean over masked positions.

    Args:
        predictions: (n, T, D).
        targets: (n, T, D) without gradient.
        masked: (n, T) bool, the positions that count.
        scale: 1 / sqrt(D) for speech, 1 / D (the mean over channels) for images.
        beta: 0: the squared distance; else smooth L1, quadratic below beta: 2 for images.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch; 0 without masked positions.

    Raises:
        ValueError: for other shapes, or a negative beta.

    Example:
        >>> x, yes = torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1, dtype=torch.bool)
        >>> masked_regression(x, torch.zeros(1, 1, 2), yes, scale=0.5, beta=2.0).item()
        1.125
    """
    if predictions.dim() != 3 or targets.shape != predictions.shape:
        got = shapes(predictions, targets)
        raise ValueError(f"predictions and targets must be (n, T, D), got {got}")
    if masked.shape != predictions.shape[:2]:
        got = shapes(predictions, masked)
        raise ValueError(f"masked must be (n, T) for predictions (n, T, D), got {got}")
    check_at_least("beta", beta, 0)
    with no_autocast(predictions):
        p, t = at_least_float32(predictions), at_least_float32(targets)
        if beta:
            error = F.smooth_l1_loss(p, t, beta=beta, reduction="none")
        else:
            error = (p - t).square()
        terms = error.sum(2) * masked
        count = sum_over_ranks(masked.sum().to(terms.dtype)).clamp_min(1)
        return terms.sum() * (scale * world_size() / count)


@torch.no_grad()
def spread(x: Tensor, real: Tensor) -> Tensor:
    """Mean over channels of the standard deviation over the real positions of the global batch.

    Args:
        x: (n, T, D).
        real: (n, T) bool.

    Returns:
        Scalar, the same on every rank; sqrt(variance + 1e-6) per channel, as in the code.
    """
    x, inside = at_least_float32(x), real[..., None]
    count = sum_over_ranks(real.sum().to(x.dtype))
    mean = sum_over_ranks((x * inside).sum((0, 1))) / count.clamp_min(1)
    squares = sum_over_ranks(((x - mean).square() * inside).sum((0, 1)))
    return (squares / (count - 1).clamp_min(1) + 1e-6).sqrt().mean()
