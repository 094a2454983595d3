"""WaveEncoder: strided convolutions from waveforms or sequences of vectors to frames.

Van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
https://arxiv.org/abs/1807.03748, section 3.1. Reference code: loeweX/Greedy_InfoMax at 22d17e4
(no norm) and facebookresearch/CPC_audio at b98a1bd (channel norm).

Shapes: B waveforms of L samples (of F features each), T frames, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sslzoo.batch import length_mask
from sslzoo.checks import check_at_least, check_choice
from sslzoo.layers import GlobalBatchNorm


class FrameNorm(nn.Module):
    """CPC_audio's ChannelNorm: norm over the channels of each frame, with unbiased variance.

    Shapes: (B, D, T). Weight and bias are (1, D, 1), as in the code.

    Args:
        channels: D, at least 2.
        eps: value added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        check_at_least("channels", channels, 2)
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, keepdim=True)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class SequenceNorm(nn.Module):
    """Normalize each channel over the frames of its own sequence: instance norm with an affine map.

    Shapes: (B, C, T) -> (B, C, T).

    Args:
        channels: C.
        eps: added to the biased variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(f(channels)) for f in (torch.ones, torch.zeros))
        self.eps = eps

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize; frames outside the mask (B, 1, T) are not in the statistics."""
        inside = torch.ones_like(x[:, :1]) if mask is None else mask.to(x.dtype)
        count = inside.sum(2, keepdim=True).clamp_min(1)
        centered = x - (x * inside).sum(2, keepdim=True) / count
        variance = (centered.square() * inside).sum(2, keepdim=True) / count
        x = centered * (variance + self.eps).rsqrt()
        return x * self.weight[:, None] + self.bias[:, None]


FrameNorms = Literal["none", "channel", "batch", "instance"]


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "instance":
        return SequenceNorm(channels)
    return FrameNorm(channels) if kind == "channel" else GlobalBatchNorm(channels)


class WaveEncoder(nn.Module):
    """Several layers of convolution, norm and ReLU. Shapes: (B, L) -> (B, T, D).

    By default a frame has 160 samples, 10 ms at 16 kHz. For padded waveforms of several lengths,
    `lengths` makes the frames independent of the padding.

    Args:
        width: D; 512 in the paper, 256 in CPC_audio.
        kernels: kernel size per layer.
        strides: stride per layer.
        paddings: zero padding on each side per layer; (3, 2, 1, 1, 1) in CPC_audio.
        norm: "none" in the paper; "channel", "batch", or "instance" over the frames of a sequence
            in CPC_audio.
        in_features: F of sequences (B, L, F), such as those of several sensors; None: waveforms.

    Attributes:
        num_features: D.
        least: the smallest L that gives a frame.
    """

    def __init__(
        self,
        width: int = 512,
        kernels: Sequence[int] = (10, 8, 4, 4, 4),
        strides: Sequence[int] = (5, 4, 2, 2, 2),
        paddings: Sequence[int] = (2, 2, 2, 2, 1),
        norm: FrameNorms = "none",
        in_features: int | None = None,
    ):
        super().__init__()
        sizes = list(zip(kernels, strides, paddings, strict=False))
        if not len(kernels) == len(strides) == len(paddings) or not sizes:
            raise ValueError(
                "kernels, strides and paddings must have one entry per layer, got "
                f"{list(kernels)}, {list(strides)} and {list(paddings)}"
            )
        check_choice("norm", norm, get_args(FrameNorms))
        if in_features is not None:
            check_at_least("in_features", in_features, 1)
        self.sizes, self.in_features = sizes, in_features
        self.least = 1
        for kernel, stride, padding in reversed(sizes):
            self.least = max(1, (self.least - 1) * stride + kernel - 2 * padding)
        self.num_features = width
        self.convs = nn.ModuleList(
            nn.Conv1d(width if i else in_features or 1, width, kernel, stride, padding)
            for i, (kernel, stride, padding) in enumerate(sizes)
        )
        self.norms = nn.ModuleList(_norm(norm, width) for _ in sizes)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """The number of frames of waveforms of these lengths. Shapes: (B,) int64 -> (B,)."""
        for size in self.sizes:
            lengths = conv_lengths(lengths, *size)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode waveforms, or sequences of vectors, to frames.

        Args:
            x: (B, L), or (B, L, F) with `in_features`; zero after each one's length.
            lengths: (B,) int64; None: all L.

        Returns:
            (B, T, D), zero after each waveform's `num_frames`.

        Raises:
            ValueError: the waveforms have another shape, or all are shorter than a frame.
        """
        if self.in_features is None:
            if x.dim() != 2:
                raise ValueError(f"waveforms must be (B, L), got {tuple(x.shape)}")
            x = x[:, None]
        else:
            if x.dim() != 3 or x.shape[2] != self.in_features:
                raise ValueError(
                    f"sequences must be (B, L, {self.in_features}), as in_features says, got "
                    f"{tuple(x.shape)}"
                )
            x = x.transpose(1, 2)
        if x.shape[2] < self.least:
            raise ValueError(
                f"L must be at least {self.least} (one frame), got {x.shape[2]}; give longer "
                "windows or sequences"
            )
        for conv, norm, size in zip(self.convs, self.norms, self.sizes, strict=True):
            x, mask = conv(x), None
            if lengths is not None:
                lengths = conv_lengths(lengths, *size)
                mask = length_mask(lengths, x.shape[2])[:, None]
            x = norm(x, mask) if isinstance(norm, SequenceNorm) else norm(x)
            x = x.relu()
            if mask is not None:  # beyond its length, a waveform must be zero at each layer
                x = x * mask
        return x.transpose(1, 2)


def conv_lengths(lengths: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Lengths after a convolution of sequences of these lengths. Shapes: (B,) int64 -> (B,)."""
    steps = torch.div(lengths + 2 * padding - kernel, stride, rounding_mode="floor") + 1
    return steps.clamp_min(0)
