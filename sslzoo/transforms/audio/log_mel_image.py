"""LogMelImage: a normalized log-mel spectrogram as an image, the input of BYOL-A.

Niizumi et al., BYOL for Audio, IJCNN 2021, https://arxiv.org/abs/2103.06695.
Reference code: nttcslab/byol-a at 3e65c92, byol_a/dataset.py, with torchaudio's or librosa's
spectrogram, and v2/train_v2.py with nnAudio's.

Deviations:
    1. Mean and deviation are numbers, as in the second version's code; the first normalizes with
       running statistics of the clips that each worker has seen.

Shapes: B waveforms of L samples, M mel bands, T = 1 + L // hop frames.
"""

from __future__ import annotations

import math
from typing import Literal, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.batch import Padded
from sslzoo.checks import check_choice
from sslzoo.random import Keys
from sslzoo.transforms.audio.log_mel import check_mel, mel_filters, triangles
from sslzoo.value_range import Look, as_sound

FrontEnd = Literal["torchaudio", "librosa", "nnaudio"]
EPS = torch.finfo(torch.float32).eps  # added before every logarithm, as in the code


def slaney_mel(hertz: float) -> float:
    """Slaney's mel scale: linear up to 1000 Hz, logarithmic above."""
    linear = hertz * 3 / 200
    return linear if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def slaney_filters(bands: int, bins: int, rate: int, low: float, high: float) -> Tensor:
    """Triangular filters (bins, M) of area 1, at equal distances on Slaney's scale."""
    ends = [slaney_mel(hertz) for hertz in (low, high)]
    mel = torch.linspace(ends[0], ends[1], bands + 2, dtype=torch.float64)
    upper = 1000 * (math.log(6.4) / 27 * (mel - 15)).exp()
    corners = torch.where(mel < 15, mel * 200 / 3, upper)
    return (triangles(corners, bins, rate) * 2 / (corners[2:] - corners[:-2])).float()


@final
class LogMelImage:
    """One view (B, 1, M, T): the logarithm of the mel energies, normalized.

    Args:
        rate: sampling rate in Hz.
        bands: M.
        window: samples of a frame, which is also the length of the Fourier transform.
        hop: samples from one frame to the next.
        low: lower edge of the lowest band in Hz.
        high: upper edge of the highest band in Hz.
        front_end: "torchaudio": HTK's mel scale, filters of height 1, ends reflected; "librosa":
            Slaney's scale, filters of area 1, ends padded with zeros; "nnaudio", the second
            version's: as librosa, ends reflected. The logarithms of the first and the others differ
            by 4.6 on average, so that `mean` does too. The class's documentation in the code says
            that the released weights of the first version had librosa's; train.py has torchaudio's.
        mean: mean of the logarithms over the data, subtracted.
        std: their standard deviation, by which they are divided.

    Raises:
        ValueError: a size is below 1, or the edges do not fit the rate.
    """

    partners = 0  # number of windows of other files needed per sample

    def __init__(
        self,
        rate: int = 16000,
        bands: int = 64,
        window: int = 1024,
        hop: int = 160,
        low: float = 60.0,
        high: float = 7800.0,
        front_end: FrontEnd = "torchaudio",
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        check_mel(rate, bands, window, hop, low, high)
        check_choice("front_end", front_end, get_args(FrontEnd))
        if std <= 0:
            raise ValueError(f"std must be greater than 0, got {std}")
        self.rate, self.bands, self.window, self.hop = rate, bands, window, hop
        self.low, self.high, self.front_end = low, high, front_end
        self.mean, self.std = mean, std
        self._look = Look()
        make = mel_filters if front_end == "torchaudio" else slaney_filters
        self._filters = make(bands, window // 2 + 1, rate, low, high)

    @torch.no_grad()
    def spectrum(self, waves: Tensor) -> Tensor:
        """The logarithm of the mel energies, not normalized. (B, L) -> (B, 1, M, T).

        Raises:
            ValueError: they are too short to be padded, or neither int16 nor floats in [-1, 1].
        """
        half = self.window // 2
        if waves.shape[1] <= half:
            raise ValueError(
                f"waveforms must have more than {half} samples (half a window), got "
                f"{waves.shape[1]}"
            )
        x = as_sound(waves, check=self._look(waves))
        mode = "constant" if self.front_end == "librosa" else "reflect"
        x = F.pad(x[:, None], (half, half), mode=mode)[:, 0]
        hann = torch.hann_window(self.window, device=x.device)
        frames = x.unfold(1, self.window, self.hop) * hann
        power = torch.fft.rfft(frames).abs().square()  # (B, T, bins)
        energy = power @ self._filters.to(x.device)
        return (energy + EPS).log().mT[:, None]

    def num_frames(self, lengths: Tensor) -> Tensor:
        """T of waveforms of these lengths, 0 if they are too short. Shapes: (B,) int64 -> (B,)."""
        return torch.where(lengths > self.window // 2, 1 + lengths // self.hop, 0)

    def __call__(self, waves: list[Tensor], keys: Keys) -> list[Tensor]:
        """The view of each window; BYOL-A itself augments it."""
        return [(self.spectrum(wave) - self.mean) / self.std for wave in waves]

    def evaluation(self, waves: Tensor | Padded) -> Tensor | Padded:
        """The same of whole windows."""
        if isinstance(waves, Padded):
            raise ValueError("eval_window of the data module must be set for images, got None")
        return (self.spectrum(waves) - self.mean) / self.std
