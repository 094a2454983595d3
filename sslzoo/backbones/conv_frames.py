"""ConvFrames: strided convolutions from waveforms to frames, of wav2vec 2.0 and its line.

Reference code and deviations: `sslzoo.backbones.speech`.

Shapes: B waveforms of L samples, T frames, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.backbones.wave import SequenceNorm, conv_lengths
from sslzoo.batch import length_mask
from sslzoo.checks import check_choice
from sslzoo.layers.precision import at_least_float32

ConvNorm = Literal["group", "layer"]


class ConvFrames(nn.Module):
    """Convolutions without zero padding, each with GELU. Shapes: (B, L) -> (B, T, C).

    By default a frame sees 400 samples, and frames are 320 samples apart, 20 ms at 16 kHz.

    Args:
        widths: channels per layer; 512 in the papers.
        kernels: kernel size per layer.
        strides: stride per layer.
        norm: "group": the channels of the first layer are normalized over time (base models);
            "layer": each frame is normalized after every layer (large models, data2vec).
        bias: whether convolutions have a bias; True in large models.

    Attributes:
        num_features: C.
        stride: samples between frames.
        kernel: samples that a frame sees.
    """

    def __init__(
        self,
        widths: Sequence[int] = (512,) * 7,
        kernels: Sequence[int] = (10, 3, 3, 3, 3, 2, 2),
        strides: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
        norm: ConvNorm = "group",
        bias: bool = False,
    ) -> None:
        super().__init__()
        if not len(widths) == len(kernels) == len(strides) or not widths:
            raise ValueError(
                "widths, kernels and strides must have one entry per layer, got "
                f"{list(widths)}, {list(kernels)} and {list(strides)}"
            )
        check_choice("norm", norm, get_args(ConvNorm))
        self.num_features, self.sizes = widths[-1], list(zip(kernels, strides, strict=True))
        self.stride, self.kernel = math.prod(strides), 1
        for kernel, stride in reversed(self.sizes):
            self.kernel = (self.kernel - 1) * stride + kernel
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (width, kernel, stride) in enumerate(zip(widths, kernels, strides, strict=True)):
            conv = nn.Conv1d(widths[i - 1] if i else 1, width, kernel, stride, bias=bias)
            nn.init.kaiming_normal_(conv.weight)
            self.convs.append(conv)
            if norm == "layer":
                self.norms.append(nn.LayerNorm(width))
            else:
                self.norms.append(nn.Identity() if i else SequenceNorm(width))

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Frames of waveforms of these lengths. Shapes: (B,) int64 -> (B,)."""
        for kernel, stride in self.sizes:
            lengths = conv_lengths(lengths, kernel, stride)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode waveforms to frames.

        Args:
            x: (B, L).
            lengths: (B,) int64 samples of each; None: all L.

        Raises:
            ValueError: the waveforms have another shape, or are shorter than a frame.
        """
        if x.dim() != 2 or x.shape[1] < self.kernel:
            raise ValueError(
                f"waveforms must be (B, L) with at least {self.kernel} samples (one frame), got "
                f"{tuple(x.shape)}; give longer windows"
            )
        x = x[:, None]
        for conv, norm, (kernel, stride) in zip(self.convs, self.norms, self.sizes, strict=True):
            x, mask = conv(x), None
            if lengths is not None:
                lengths = conv_lengths(lengths, kernel, stride)
                mask = length_mask(lengths, x.shape[2])[:, None]
            if isinstance(norm, SequenceNorm):
                x = norm(at_least_float32(x), mask).to(x.dtype)
            elif isinstance(norm, nn.LayerNorm):
                x = norm(x.mT).mT
            x = F.gelu(x)
        return x.mT


def normalize_waveforms(values: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Normalize each waveform to mean 0 and variance 1, zero after its length.

    Silence becomes zeros, since 1e-5 is added to the variance.

    Args:
        values: (B, L).
        lengths: (B,) int64 samples of each; None: all L.
    """
    if lengths is None:
        return F.layer_norm(values, values.shape[1:])
    inside = length_mask(lengths, values.shape[1])
    count = lengths.clamp_min(1)[:, None]
    centered = (values - (values * inside).sum(1, keepdim=True) / count) * inside
    variance = centered.square().sum(1, keepdim=True) / count
    return centered * (variance + 1e-5).rsqrt()
