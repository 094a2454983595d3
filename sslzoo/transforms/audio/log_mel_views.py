"""LogMelViews: spectrograms as images, so that a method of images learns from sound.

The operations are those of Niizumi et al., BYOL for Audio, IJCNN 2021,
https://arxiv.org/abs/2103.06695 (mix, random resized crop in time and frequency), and a gain.

Deviations:
    1. The sound that is mixed in is a keyed choice from the training set, another for each view;
       the paper's comes from the samples seen last.
    2. A box never reaches beyond the spectrogram, and is resized bilinearly, antialiased; the
       paper's may reach into zeros, and is resized bicubically.
    3. Gain is one number a view; the paper fades it over time in a later version.

Shapes: B windows of L samples, M mel bands, T frames, a view's side S.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sslzoo.batch import Padded
from sslzoo.random import Keys
from sslzoo.transforms.audio.log_mel import LogMel
from sslzoo.transforms.image.crop import RandomResizedCrop


@final
class LogMelViews:
    """Two views: another sound mixed in, a box of time and frequency, a gain; then standardized.

    Args:
        mel: of the waveforms.
        size: S; the views are square, (B, 1, S, S).
        mix: the other sound's share of the energy is uniform in [0, mix]; 0.4 in the paper.
        scale: range of the box's share of the spectrogram; 0.6 in the paper for each side.
        gain: in dB, uniform in [-gain, gain].
        mean: in dB, of what leaves.
        std: in dB, likewise.
    """

    partners = 2  # other windows that the data module brings with each sample

    def __init__(
        self,
        mel: LogMel,
        size: int = 64,
        mix: float = 0.4,
        scale: tuple[float, float] = (0.4, 1.0),
        gain: float = 6.0,
        mean: float = -40.0,
        std: float = 20.0,
    ) -> None:
        if not 0 <= mix < 1 or gain < 0 or std <= 0:
            raise ValueError(
                f"0 <= mix < 1, gain of at least 0 and std above 0 wanted, got {mix}, {gain}, {std}"
            )
        self.mel, self.mix, self.gain, self.mean, self.std = mel, mix, gain, mean, std
        self.size, self.scale = size, scale
        self.crop = RandomResizedCrop(size, scale, (0.6, 1 / 0.6), flip=0.0)

    @torch.no_grad()
    def __call__(self, waves: list[Tensor], keys: Keys) -> list[Tensor]:
        """Shapes: the window and two others, (B, L) int16 -> two (B, 1, S, S) float32."""
        if len(waves) != 1 + self.partners:
            raise ValueError(f"a window and {self.partners} others wanted, got {len(waves)} in all")
        own, *others = (self.mel.spectrum(wave) for wave in waves)  # (B, T, M) dB
        return [
            self._view(own, other, keys.fold("view", number)) for number, other in enumerate(others)
        ]

    @torch.no_grad()
    def evaluation(self, waves: Tensor | Padded) -> Tensor | Padded:
        """The whole spectrogram of a window: (B, L) -> (B, 1, M, T)."""
        if isinstance(waves, Padded):
            raise ValueError("an image has one size: set eval_window of the data module, got null")
        return (self.mel.spectrum(waves).mT[:, None] - self.mean) / self.std

    def _view(self, own: Tensor, other: Tensor, keys: Keys) -> Tensor:
        share = keys.uniform("mix", 1, 1) * self.mix
        energy = (1 - share) * 10 ** (own / 10) + share * 10 ** (other / 10)
        image = 10 * energy.log10().mT[:, None]  # (B, 1, M, T)
        gain = keys.uniform("gain", 1, 1, 1, low=-self.gain, high=self.gain)
        return (self.crop(image, keys) + gain - self.mean) / self.std
