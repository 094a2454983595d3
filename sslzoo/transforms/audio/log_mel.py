"""LogMel: a waveform's energy by time and frequency, in decibels, batched on its own device.

Stevens, Volkmann and Newman's mel scale in the form 2595 log10(1 + f / 700), triangles of height 1.

Shapes: B waveforms of L samples, M mel bands, T frames.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from sslzoo.batch import Padded
from sslzoo.random import Keys
from sslzoo.transforms.audio.waveform import FULL_SCALE


def mel_filters(bands: int, bins: int, rate: int, low: float, high: float) -> Tensor:
    """Triangles (bins, M) between frequencies that are equally far apart in mel."""
    ends = [2595 * math.log10(1 + hertz / 700) for hertz in (low, high)]
    mel = torch.linspace(ends[0], ends[1], bands + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mel / 2595) - 1)
    frequency = torch.linspace(0, rate / 2, bins, dtype=torch.float64)[:, None]
    rising = (frequency - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequency) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()


@final
class LogMel:
    """Decibels of the mel energies: (B, L) int16, or float in [-1, 1], -> (B, T, M).

    Hann windows, not centered: the first frame begins at the first sample, and T is
    1 + (L - window) // hop.

    Args:
        rate: Hz.
        bands: M.
        window: samples of a frame; also the length of the Fourier transform.
        hop: samples from frame to frame.
        low: Hz of the lowest band's foot.
        high: Hz of the highest band's foot; None: half the rate.
        floor: energy that is added, so that silence is finite: 1e-8, -80 dB.
    """

    partners = 0  # other windows that the data module brings with each sample

    def __init__(
        self,
        rate: int = 16000,
        bands: int = 64,
        window: int = 400,
        hop: int = 160,
        low: float = 20.0,
        high: float | None = None,
        floor: float = 1e-8,
    ) -> None:
        if min(rate, bands, window, hop) < 1 or not 0 <= low < (high or rate / 2) <= rate / 2:
            raise ValueError(
                "sizes of at least 1 and 0 <= low < high <= rate / 2 wanted, got rate "
                f"{rate}, bands {bands}, window {window}, hop {hop}, low {low}, high {high}"
            )
        self.rate, self.bands, self.window, self.hop = rate, bands, window, hop
        self.low, self.high, self.floor = low, high, floor
        self.filters = mel_filters(bands, window // 2 + 1, rate, low, high or rate / 2)

    @torch.no_grad()
    def spectrum(self, waves: Tensor) -> Tensor:
        """(B, L) -> (B, T, M)."""
        if waves.shape[1] < self.window:
            raise ValueError(f"at least {self.window} samples wanted, got {waves.shape[1]}")
        x = waves.to(torch.float32)
        if not waves.is_floating_point():
            x = x / FULL_SCALE
        hann = torch.hann_window(self.window, device=x.device)
        frames = x.unfold(1, self.window, self.hop) * hann
        power = torch.fft.rfft(frames).abs().square() / self.window  # (B, T, bins)
        energy = power @ self.filters.to(x.device)
        return 10 * (energy + self.floor).log10()

    def __call__(self, waves: list[Tensor], keys: Keys) -> list[Tensor]:
        """Frames (B, T, M), for `CPC` with an encoder of frames; nothing is random."""
        return [self.spectrum(wave) for wave in waves]

    def evaluation(self, waves: Tensor | Padded) -> Tensor | Padded:
        """The same, with the frames of each waveform's own samples."""
        if not isinstance(waves, Padded):
            return self.spectrum(waves)
        lack = max(0, self.window - waves.values.shape[1])
        spectrum = self.spectrum(torch.nn.functional.pad(waves.values, (0, lack)))
        lengths = (1 + (waves.lengths - self.window) // self.hop).clamp_min(1)
        inside = torch.arange(spectrum.shape[1], device=spectrum.device) < lengths[:, None]
        return Padded(spectrum * inside[..., None], lengths)
