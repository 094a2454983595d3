"""Waveform: raw int16 samples to floats, the whole transform of CPC.

Shapes: B waveforms of L samples.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sslzoo.batch import Padded
from sslzoo.random import Keys

FULL_SCALE = 32768.0
# Greedy InfoMax's, of LibriSpeech: its samples are int32, so 65536 times ours.
GIM_MEAN, GIM_STD = -1456218.75 / 2**31, 135303504.0 / 2**31


@final
class Waveform:
    """One view: (x - mean) / std of int16 over 32768, or of float in [-1, 1].

    Args:
        mean: of samples in [-1, 1]; 0 in CPC_audio, -0.000678 in Greedy InfoMax.
        std: likewise; 1 in CPC_audio, 0.063 in Greedy InfoMax.
    """

    partners = 0  # other windows that the data module brings with each sample

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0:
            raise ValueError(f"a std above 0 wanted, got {std}")
        self.mean, self.std = mean, std

    def __call__(self, waves: list[Tensor], keys: Keys) -> list[Tensor]:
        """Shapes: [(B, L) int16] -> [(B, L) float32]; nothing is random."""
        return [self._scaled(wave) for wave in waves]

    def evaluation(self, waves: Tensor | Padded) -> Tensor | Padded:
        """The same; zeros stay behind each waveform's own samples."""
        if not isinstance(waves, Padded):
            return self._scaled(waves)
        values = self._scaled(waves.values)
        inside = torch.arange(values.shape[1], device=values.device) < waves.lengths[:, None]
        return Padded(values * inside, waves.lengths)

    def _scaled(self, waves: Tensor) -> Tensor:
        x = waves.to(torch.float32)
        if not waves.is_floating_point():
            x = x / FULL_SCALE
        return (x - self.mean) / self.std
