"""Waveform: int16 samples to normalized floats, CPC's transform.

Shapes: B waveforms of L samples.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from sslzoo.batch import Padded
from sslzoo.random import Keys
from sslzoo.value_range import Look, as_sound

# Greedy InfoMax's for LibriSpeech, whose int32 samples are 65536 times ours.
GIM_MEAN, GIM_STD = -1456218.75 / 2**31, 135303504.0 / 2**31


@final
class Waveform:
    """The normalized waveform (x - mean) / std, as a single view.

    Args:
        mean: mean of the samples in [-1, 1]; 0 in CPC_audio, -0.000678 in Greedy InfoMax.
        std: standard deviation of the samples; 1 in CPC_audio, 0.063 in Greedy InfoMax.
    """

    partners = 0  # number of windows of other files needed per sample

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0:
            raise ValueError(f"std must be greater than 0, got {std}")
        self.mean, self.std = mean, std
        self._look = Look()

    def __call__(self, waves: list[Tensor], keys: Keys) -> list[Tensor]:
        """Normalize windows [(B, L)] to [(B, L) float32], without augmentation.

        Raises:
            ValueError: they are neither int16 nor floats in [-1, 1].
        """
        return [self._scaled(wave) for wave in waves]

    def evaluation(self, waves: Tensor | Padded) -> Tensor | Padded:
        """Normalize whole waveforms, zero after each one's own samples."""
        if not isinstance(waves, Padded):
            return self._scaled(waves)
        return Padded(self._scaled(waves.values) * waves.mask, waves.lengths)

    def _scaled(self, waves: Tensor) -> Tensor:
        return (as_sound(waves, check=self._look(waves)) - self.mean) / self.std
