"""SpeechEncoder: convolutions over the waveform and a Transformer, of wav2vec 2.0 and its line.

Baevski, Zhou, Mohamed and Auli, wav2vec 2.0, NeurIPS 2020, https://arxiv.org/abs/2006.11477; Hsu et
al., HuBERT, 2021, https://arxiv.org/abs/2106.07447; Baevski et al., data2vec, ICML 2022,
https://arxiv.org/abs/2202.03555. Reference code: facebookresearch/fairseq at 3d262bb,
models/wav2vec/wav2vec2.py; transformers 5.24.0 for the whole encoder.

Deviations:
    padding: the frames of a padded waveform are those of the waveform alone. In the code, group
        norm and, with several layers, the convolutional positions see the padding.
    layer drop: a dropped layer is computed and gets zero gradients, so that all ranks have the
        gradient of every parameter.

Shapes: B waveforms of L samples, T frames, C channels of the convolutions, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslzoo.backbones.conv_frames import ConvFrames, normalize_waveforms
from sslzoo.backbones.drop_path import without_drop_path
from sslzoo.backbones.speech_transformer import SpeechTransformer
from sslzoo.backbones.text import KeyedDropout
from sslzoo.batch import Padded, UnitSequence, check_frames, length_mask
from sslzoo.checks import check_at_least, check_interval


class Frames(NamedTuple):
    """Frames of waveforms before the Transformer.

    Attributes:
        conv: (B, T, C) outputs of the convolutions.
        normalized: (B, T, C) after the layer norm; wav2vec 2.0 quantizes them.
        projected: (B, T, D), without dropout.
        lengths: (B,) int64 frames of each waveform; None: all T.
    """

    conv: Tensor
    normalized: Tensor
    projected: Tensor
    lengths: Tensor | None

    @property
    def num_frames(self) -> Tensor:
        """Frames of each waveform, (B,) int64."""
        if self.lengths is not None:
            return self.lengths
        size = self.conv.shape[:2]
        return torch.full(size[:1], size[1], device=self.conv.device)

    @property
    def real(self) -> Tensor:
        """Mask (B, T) bool, True inside a waveform."""
        return length_mask(self.num_frames, self.conv.shape[1])


class SpeechEncoder(nn.Module):
    """Encode waveforms: convolutions, layer norm, projection, Transformer; mean over frames.

    The input is a tensor (B, L), or `Padded` for waveforms of several lengths. Padding then does
    not change a waveform's features.

    Args:
        frames: convolutions (B, L) -> (B, T, C).
        transformer: (B, T, D) -> (B, T, D).
        normalize: whether each waveform is normalized to mean 0 and variance 1; False in the base
            models of wav2vec 2.0 and HuBERT, True in large ones and in data2vec.
        rate: sampling rate in Hz for which the net is made; a data module with another one is
            refused.
        feature_gradient: factor of the convolutions' gradient; 0.1 in wav2vec 2.0 and HuBERT base,
            1 in large models and in data2vec.
        input_dropout: dropout of the projected frames; 0.1 in base models.
        layer: number of the layer whose output `forward` and `forward_frames` give, 0 for the
            Transformer's input; None: the last.

    Attributes:
        num_features: D.
        frame_features: C.
        mask_token: (D,), replaces masked frames.
    """

    def __init__(
        self,
        frames: ConvFrames,
        transformer: SpeechTransformer,
        normalize: bool = False,
        rate: int = 16000,
        feature_gradient: float = 1.0,
        input_dropout: float = 0.0,
        layer: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least("rate", rate, 1)
        check_interval("feature_gradient", feature_gradient, 0, 1)
        if layer is not None:
            check_interval("layer", layer, 0, len(transformer.layers))
        width, channels = transformer.num_features, frames.num_features
        self.frames, self.transformer = frames, transformer
        self.num_features, self.frame_features = width, channels
        self.normalize, self.rate, self.layer = normalize, rate, layer
        self.feature_gradient = feature_gradient
        self.norm, self.project = nn.LayerNorm(channels), nn.Linear(channels, width)
        self.dropout = nn.Dropout(input_dropout)
        self.mask_token = nn.Parameter(torch.rand(width))

    def num_frames(self, lengths: Tensor) -> Tensor:
        """The number of frames of waveforms of these lengths. Shapes: (B,) int64 -> (B,)."""
        return self.frames.num_frames(lengths)

    def samples(self, num_frames: int) -> int:
        """Samples of a waveform that has so many frames, at least."""
        return (num_frames - 1) * self.frames.stride + self.frames.kernel

    def embed(self, x: Tensor | Padded | UnitSequence) -> Frames:
        """Frames before the mask and the Transformer."""
        values, samples = (x, None) if isinstance(x, Tensor) else x[:2]
        if self.normalize:
            values = normalize_waveforms(values, samples)
        lengths = None if samples is None else self.frames.num_frames(samples)
        conv = self.frames(values, samples)
        if self.feature_gradient != 1:
            conv = torch.lerp(conv.detach(), conv, self.feature_gradient)
        normalized = self.norm(conv)
        return Frames(conv, normalized, self.project(normalized), lengths)

    def contexts(self, frames: Frames, mask: Tensor | None = None) -> list[Tensor]:
        """The first layer's input and each layer's output, see `SpeechTransformer.run`.

        Args:
            frames: of `embed`.
            mask: (B, T) bool, the frames that the mask token replaces; None: none.
        """
        x = self.dropout(frames.projected)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        h = self.transformer.add_positions(x, frames.lengths)
        return self.transformer.run(h, frames.lengths)[0]

    def forward_masked(self, frames: Frames, mask: Tensor) -> Tensor:
        """The Transformer's result for masked frames, (B, T, D)."""
        return self.transformer.finish(self.contexts(frames, mask)[-1])

    def forward_layers(self, x: Tensor | Padded | UnitSequence) -> tuple[list[Tensor], Tensor]:
        """The first layer's input and each layer's output, for probes of layers.

        Returns:
            depth + 1 tensors (B, T, D), and the number of frames of each waveform (B,).

        Raises:
            ValueError: a waveform is shorter than a frame.
        """
        if not isinstance(x, Tensor):
            check_frames(x.lengths, self.num_frames(x.lengths), type(self).__name__)
        frames = self.embed(x)
        return self.contexts(frames), frames.num_frames

    def forward_frames(self, x: Tensor | Padded | UnitSequence) -> Padded:
        """Contexts (B, T, D) with the number of frames per waveform."""
        layers, lengths = self.forward_layers(x)
        if self.layer is not None:
            return Padded(layers[self.layer], lengths)
        return Padded(self.transformer.finish(layers[-1]), lengths)

    def forward(self, x: Tensor | Padded | UnitSequence) -> Tensor:
        """The mean over a waveform's frames, (B, D)."""
        frames = self.forward_frames(x)
        mean = (frames.values * frames.mask[..., None]).sum(1)
        return mean / frames.lengths.clamp_min(1)[:, None]


def check_speech(backbone: nn.Module) -> SpeechEncoder:
    """Return a backbone that is a SpeechEncoder.

    Raises:
        ValueError: it is another module.
    """
    if not isinstance(backbone, SpeechEncoder):
        raise ValueError(f"backbone must be a SpeechEncoder, got {type(backbone).__name__}")
    return backbone


def without_dropout(module: nn.Module) -> nn.Module:
    """Disable dropout, layer drop and stochastic depth in place, as for a teacher."""
    for part in module.modules():
        if isinstance(part, nn.Dropout | KeyedDropout):
            part.p = 0.0
        elif isinstance(part, SpeechTransformer):
            part.layer_drop = 0.0
    return without_drop_path(module)
