"""LogMelViews: augmented log-mel spectrograms as images, for image methods on sound.

The operations are mix and random resized crop in time and frequency, from Niizumi et al., BYOL for
Audio, IJCNN 2021, https://arxiv.org/abs/2103.06695, and a gain.

Deviations:
    1. The sound to mix in is a keyed draw from the training set, one per view; in the paper it is
       one of the most recent samples.
    2. A box lies inside the spectrogram and is resized bilinearly, antialiased; in the paper it may
       extend into zero padding and is resized bicubically.
    3. The gain is constant per view; the paper's later version fades it over time.

Shapes: B windows of L samples, M mel bands, T frames, a view's side S.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sslzoo.batch import Padded
from sslzoo.checks import check_at_least, check_interval
from sslzoo.random import Keys
from sslzoo.transforms.audio.log_mel import LogMel
from sslzoo.transforms.image.crop import RandomResizedCrop


@final
class LogMelViews:
    """Two views: mix with another sound, random resized crop, gain, standardize.

    Args:
        mel: computes the spectrograms.
        size: S; views are (B, 1, S, S).
        mix: the other sound's fraction of the energy is uniform in [0, mix]; 0.4 in the paper.
        scale: range of the box's fraction of the spectrogram; in the paper 0.6 per side.
        gain: the gain is uniform in [-gain, gain] dB.
        mean: mean of the views in dB, subtracted.
        std: standard deviation of the views in dB.
    """

    partners = 2  # number of windows of other files needed per sample

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
        check_interval("mix", mix, 0, 1, "[)")
        check_at_least("gain", gain, 0)
        if std <= 0:
            raise ValueError(f"std must be greater than 0, got {std}")
        self.mel, self.mix, self.gain, self.mean, self.std = mel, mix, gain, mean, std
        self.size, self.scale = size, scale
        self.crop = RandomResizedCrop(size, scale, (0.6, 1 / 0.6), flip=0.0)

    @torch.no_grad()
    def __call__(self, waves: list[Tensor], keys: Keys) -> list[Tensor]:
        """Make two views (B, 1, S, S) of three windows (B, L): the sample's and two others."""
        if len(waves) != 1 + self.partners:
            raise ValueError(f"waves must be {1 + self.partners} windows, got {len(waves)}")
        own, *others = (self.mel.spectrum(wave) for wave in waves)  # (B, T, M) dB
        return [
            self._view(own, other, keys.fold("view", number)) for number, other in enumerate(others)
        ]

    @torch.no_grad()
    def evaluation(self, waves: Tensor | Padded) -> Tensor | Padded:
        """The whole spectrogram of a window: (B, L) -> (B, 1, M, T)."""
        if isinstance(waves, Padded):
            raise ValueError("eval_window of the data module must be set for images, got None")
        return (self.mel.spectrum(waves).mT[:, None] - self.mean) / self.std

    def _view(self, own: Tensor, other: Tensor, keys: Keys) -> Tensor:
        share = keys.uniform("mix", 1, 1) * self.mix
        energy = (1 - share) * 10 ** (own / 10) + share * 10 ** (other / 10)
        image = 10 * energy.log10().mT[:, None]  # (B, 1, M, T)
        gain = keys.uniform("gain", 1, 1, 1, low=-self.gain, high=self.gain)
        boxes = self.crop.draw(keys, image.shape[2], image.shape[3])  # decibels are no pixels
        planes = self.crop.planes(image, boxes, self.crop.draw_flip(keys))
        return (planes.transpose(0, 1) + gain - self.mean) / self.std
