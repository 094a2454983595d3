"""LogMel: the log-mel spectrogram of waveforms in decibels, on their device.

The mel scale is 2595 log10(1 + f / 700), and the triangular filters have height 1.

Shapes: B waveforms of L samples, M mel bands, T frames.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from sslzoo.batch import Padded, length_mask
from sslzoo.checks import check_at_least
from sslzoo.random import Keys
from sslzoo.value_range import Look, as_sound


def check_mel(rate: int, bands: int, window: int, hop: int, low: float, high: float | None) -> None:
    """Check the arguments of a mel spectrogram.

    Raises:
        ValueError: a size is below 1, or the edges are not 0 <= low < high <= rate / 2.
    """
    for name, size in (("rate", rate), ("bands", bands), ("window", window), ("hop", hop)):
        check_at_least(name, size, 1)
    if not 0 <= low < (high or rate / 2) <= rate / 2:
        raise ValueError(
            f"low and high must be 0 <= low < high <= rate / 2, got {low} and {high} at rate {rate}"
        )


def mel_filters(bands: int, bins: int, rate: int, low: float, high: float) -> Tensor:
    """Triangular filters (bins, M) between frequencies that are equally spaced in mel."""
    ends = [2595 * math.log10(1 + hertz / 700) for hertz in (low, high)]
    mel = torch.linspace(ends[0], ends[1], bands + 2, dtype=torch.float64)
    return triangles(700 * (10 ** (mel / 2595) - 1), bins, rate).float()


def triangles(corners: Tensor, bins: int, rate: int) -> Tensor:
    """Filters of height 1 over each three neighbors of the corners (M + 2,) in Hz. (bins, M)."""
    frequency = torch.linspace(0, rate / 2, bins, dtype=torch.float64)[:, None]
    rising = (frequency - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequency) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp_min(0)


@final
class LogMel:
    """The log-mel spectrogram of (B, L) int16, or float in [-1, 1]: (B, T, M) decibels.

    Hann windows are not centered: the first frame begins at the first sample, and
    T = 1 + (L - window) // hop.

    Args:
        rate: sampling rate in Hz.
        bands: M.
        window: samples of a frame, which is also the length of the Fourier transform.
        hop: samples from one frame to the next.
        low: lower edge of the lowest band in Hz.
        high: upper edge of the highest band in Hz; None: half the rate.
        floor: energy added for silence; 1e-8 is -80 dB.
    """

    partners = 0  # number of windows of other files needed per sample

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
        check_mel(rate, bands, window, hop, low, high)
        self.rate, self.bands, self.window, self.hop = rate, bands, window, hop
        self.low, self.high, self.floor = low, high, floor
        self._look = Look()
        self.filters = mel_filters(bands, window // 2 + 1, rate, low, high or rate / 2)

    @torch.no_grad()
    def spectrum(self, waves: Tensor) -> Tensor:
        """The spectrogram of waveforms (B, L): (B, T, M).

        Raises:
            ValueError: they are shorter than a frame, or neither int16 nor floats in [-1, 1].
        """
        if waves.shape[1] < self.window:
            raise ValueError(
                f"waveforms must have at least {self.window} samples (window), got {waves.shape[1]}"
            )
        x = as_sound(waves, check=self._look(waves))
        hann = torch.hann_window(self.window, device=x.device)
        frames = x.unfold(1, self.window, self.hop) * hann
        power = torch.fft.rfft(frames).abs().square() / self.window  # (B, T, bins)
        energy = power @ self.filters.to(x.device)
        return 10 * (energy + self.floor).log10()

    def __call__(self, waves: list[Tensor], keys: Keys) -> list[Tensor]:
        """The spectrogram (B, T, M) of each window, without augmentation."""
        return [self.spectrum(wave) for wave in waves]

    def num_frames(self, lengths: Tensor) -> Tensor:
        """T in evaluation of waveforms of these lengths. Shapes: (B,) int64 -> (B,)."""
        return (1 + (lengths - self.window) // self.hop).clamp_min(1)

    def evaluation(self, waves: Tensor | Padded) -> Tensor | Padded:
        """The spectrogram of whole waveforms, zero after each one's own frames.

        A waveform that is shorter than a frame is padded with silence to one.
        """
        values = waves.values if isinstance(waves, Padded) else waves
        lack = max(0, self.window - values.shape[1])
        spectrum = self.spectrum(torch.nn.functional.pad(values, (0, lack)))
        if not isinstance(waves, Padded):
            return spectrum
        lengths = self.num_frames(waves.lengths)
        return Padded(spectrum * length_mask(lengths, spectrum.shape[1])[..., None], lengths)
