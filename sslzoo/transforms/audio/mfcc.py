"""MFCC: mel-frequency cepstral coefficients with their first and second differences.

The coefficients are Kaldi's (https://kaldi-asr.org) without dither: frames of 25 ms every 10 ms,
their mean removed, pre-emphasis 0.97, Povey's window, 23 mel bands from 20 Hz, the log energies'
first 13 cosine coefficients, liftered by 22. HuBERT's first units are clusters of them.

Shapes: B waveforms of L samples, T frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslzoo.checks import check_at_least

_BANDS, _COEFFICIENTS, _LIFTER = 23, 13, 22
_REACH = 2  # frames on each side of a difference
_PART = 10_000  # frames that are computed at once


def _mel(hertz: Tensor | float) -> Tensor:
    return 1127 * torch.log1p(torch.as_tensor(hertz, dtype=torch.float64) / 700)


def _filters(size: int, rate: int) -> Tensor:
    """Triangles in mel of the lower `size` / 2 Fourier bins, (size / 2, 23)."""
    ends = torch.linspace(float(_mel(20.0)), float(_mel(rate / 2)), _BANDS + 2).double()
    mel = _mel(torch.arange(size // 2) * (rate / size))[:, None]
    rising = (mel - ends[:-2]) / (ends[1:-1] - ends[:-2])
    falling = (ends[2:] - mel) / (ends[2:] - ends[1:-1])
    return torch.minimum(rising, falling).clamp_min(0)


def _cosines() -> Tensor:
    """Orthonormal DCT-II times the lifter, (23, 13)."""
    k = torch.arange(_COEFFICIENTS, dtype=torch.float64)
    n = torch.arange(_BANDS, dtype=torch.float64)[:, None]
    table = torch.cos(math.pi / _BANDS * (n + 0.5) * k) * math.sqrt(2 / _BANDS)
    table[:, 0] *= math.sqrt(0.5)
    return table * (1 + _LIFTER / 2 * torch.sin(math.pi * k / _LIFTER))


def differences(x: Tensor) -> Tensor:
    """Slope of the least-squares line through 5 frames; the ends are repeated. (B, T, F)."""
    padded = torch.cat([x[:, :1]] * _REACH + [x] + [x[:, -1:]] * _REACH, dim=1)
    frames = x.shape[1]
    slope = torch.zeros_like(x)
    for n in range(1, _REACH + 1):
        later = padded[:, _REACH + n : _REACH + n + frames]
        slope = slope + n * (later - padded[:, _REACH - n : _REACH - n + frames])
    return slope / (2 * sum(n * n for n in range(1, _REACH + 1)))


class MFCC:
    """13 coefficients, their differences, and the differences of these.

    Args:
        rate: sampling rate in Hz; a frame begins every 10 ms.
    """

    def __init__(self, rate: int) -> None:
        check_at_least("rate of MFCC", rate, 1000)
        self.rate = rate
        self.window, self.hop = round(0.025 * rate), round(0.01 * rate)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """T of waveforms of these lengths, 0 if they are shorter than a frame of 25 ms."""
        return ((lengths - self.window) // self.hop + 1).clamp_min(0)

    @torch.no_grad()
    def __call__(self, waves: Tensor) -> Tensor:
        """Compute the coefficients of waveforms (B, L), floats in [-1, 1].

        Returns:
            (B, T, 39) float64.

        Raises:
            ValueError: the waveforms are shorter than a frame of 25 ms.
        """
        check_at_least("samples of a waveform (25 ms)", waves.shape[1], self.window)
        parts = waves.unfold(1, self.window, self.hop).split(_PART, dim=1)
        coefficients = torch.cat([self._coefficients(part.double()) for part in parts], dim=1)
        first = differences(coefficients)
        return torch.cat([coefficients, first, differences(first)], dim=2)

    def _coefficients(self, frames: Tensor) -> Tensor:
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        povey = torch.hann_window(self.window, periodic=False, dtype=torch.float64) ** 0.85
        frames = (frames - 0.97 * before) * povey.to(frames.device)
        size = 1 << (self.window - 1).bit_length()
        power = torch.fft.rfft(frames, n=size).abs().square()[..., : size // 2]
        energy = power @ _filters(size, self.rate).to(power.device)
        floor = torch.finfo(torch.float32).eps
        return energy.clamp_min(floor).log() @ _cosines().to(power.device)
