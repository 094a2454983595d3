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

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.backbones.drop_path import without_drop_path
from sslzoo.backbones.text import KeyedDropout
from sslzoo.backbones.wave import SequenceNorm
from sslzoo.batch import Padded, UnitSequence, length_mask
from sslzoo.checks import check_at_least, check_choice, check_interval, check_whole
from sslzoo.layers.precision import at_least_float32

ConvNorm = Literal["group", "layer"]


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


class ConvFrames(nn.Module):
    """Convolutions without zero padding, each with GELU. Shapes: (B, L) -> (B, T, C).

    By default a frame sees 400 samples, and frames are 320 samples apart, 20 ms at 16 kHz.

    Args:
        widths: channels per layer; 512 in the papers.
        kernels: kernel size per layer.
        strides: stride per layer.
        norm: "group": the channels of the first layer are normalized over time (base models);
            "layer": each frame is normalized after every layer (large models, data2vec).
        bias: whether convolutions have a bias; True in large models.

    Attributes:
        num_features: C.
        stride: samples between frames.
        kernel: samples that a frame sees.
    """

    def __init__(
        self,
        widths: Sequence[int] = (512,) * 7,
        kernels: Sequence[int] = (10, 3, 3, 3, 3, 2, 2),
        strides: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
        norm: ConvNorm = "group",
        bias: bool = False,
    ) -> None:
        super().__init__()
        if not len(widths) == len(kernels) == len(strides) or not widths:
            raise ValueError(
                "widths, kernels and strides must have one entry per layer, got "
                f"{list(widths)}, {list(kernels)} and {list(strides)}"
            )
        check_choice("norm", norm, get_args(ConvNorm))
        self.num_features, self.sizes = widths[-1], list(zip(kernels, strides, strict=True))
        self.stride, self.kernel = math.prod(strides), 1
        for kernel, stride in reversed(self.sizes):
            self.kernel = (self.kernel - 1) * stride + kernel
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (width, kernel, stride) in enumerate(zip(widths, kernels, strides, strict=True)):
            conv = nn.Conv1d(widths[i - 1] if i else 1, width, kernel, stride, bias=bias)
            nn.init.kaiming_normal_(conv.weight)
            self.convs.append(conv)
            if norm == "layer":
                self.norms.append(nn.LayerNorm(width))
            else:
                self.norms.append(nn.Identity() if i else SequenceNorm(width))

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Frames of waveforms of these lengths. Shapes: (B,) int64 -> (B,)."""
        for kernel, stride in self.sizes:
            steps = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
            lengths = steps.clamp_min(0)
        return lengths

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode waveforms to frames.

        Args:
            x: (B, L).
            lengths: (B,) int64 samples of each; None: all L.

        Raises:
            ValueError: the waveforms have another shape, or are shorter than a frame.
        """
        if x.dim() != 2 or x.shape[1] < self.kernel:
            raise ValueError(
                f"waveforms must be (B, L) with at least {self.kernel} samples (one frame), got "
                f"{tuple(x.shape)}; give longer windows"
            )
        x = x[:, None]
        for conv, norm, (kernel, stride) in zip(self.convs, self.norms, self.sizes, strict=True):
            x, mask = conv(x), None
            if lengths is not None:
                lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
                mask = length_mask(lengths, x.shape[2])[:, None]
            if isinstance(norm, SequenceNorm):
                x = norm(at_least_float32(x), mask).to(x.dtype)
            elif isinstance(norm, nn.LayerNorm):
                x = norm(x.mT).mT
            x = F.gelu(x)
        return x.mT


class ConvPositions(nn.Module):
    """Convolutional relative positions. Shapes: (B, T, D) -> (B, T, D).

    One convolution whose weight is normalized per tap of the kernel, or several with a layer norm
    without weights each; then GELU. For an even kernel the last output is dropped.

    Args:
        width: D.
        kernel: frames of the convolution; 128 in wav2vec 2.0 and HuBERT, 95 in data2vec, where
            each of 5 layers has 95 // 5 = 19.
        groups: groups of channels; 16 in these papers.
        depth: number of layers.
    """

    def __init__(self, width: int, kernel: int = 128, groups: int = 16, depth: int = 1) -> None:
        super().__init__()
        for name, value in (("kernel", kernel), ("groups", groups), ("depth", depth)):
            check_whole(name, value, 1)
        if width % groups:
            raise ValueError(f"groups must divide the width {width}, got {groups}")
        size = kernel if depth == 1 else max(3, kernel // depth)
        self.groups, self.padding = groups, size // 2
        self.crop = 1 - size % 2
        self.convs = nn.ModuleList()
        if depth == 1:
            weight = torch.randn(width, width // groups, size) * math.sqrt(4 / (size * width))
            self.weight_v = nn.Parameter(weight)
            self.weight_g = nn.Parameter(weight.norm(dim=(0, 1), keepdim=True))
            self.bias = nn.Parameter(torch.zeros(width))
        else:
            self.convs.extend(
                nn.Conv1d(width, width, size, padding=size // 2, groups=groups)
                for _ in range(depth)
            )

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """Positions to add; frames outside the mask `inside` (B, T, 1) count as zeros."""
        width = x.shape[2]
        if not self.convs:
            weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
            x = x if inside is None else x * inside
            x = F.conv1d(x.mT, weight, self.bias, padding=self.padding, groups=self.groups)
            return F.gelu(x[..., : x.shape[2] - self.crop]).mT
        for conv in self.convs:
            x = conv((x if inside is None else x * inside).mT)
            x = F.gelu(F.layer_norm(x[..., : x.shape[2] - self.crop].mT, (width,)))
        return x


class SpeechLayer(nn.Module):
    """A Transformer layer; also returns the feed-forward output before its residual.

    Args:
        width: D.
        heads: number of attention heads.
        hidden: hidden width of the feed-forward network.
        norm_first: pre-norm (large models), or post-norm (base models).
        dropout: dropout probability of both branches.
        attention_dropout: of the attention weights.
        activation_dropout: of the hidden activations.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        norm_first: bool,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout, self.attention_dropout = nn.Dropout(dropout), nn.Dropout(attention_dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Multi-head attention to the positions of the mask (B, 1, 1, T). (B, T, D)."""
        q, k, v = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        rate = self.attention_dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return self.out(attended.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward network. (B, T, D)."""
        return self.fc2(self.activation_dropout(F.gelu(self.fc1(x))))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.norm_first:
            x = x + self.dropout(self.attend(self.norm1(x), mask))
            fed = self.feed(self.norm2(x))
            return x + self.dropout(fed), fed
        x = self.norm1(x + self.dropout(self.attend(x, mask)))
        fed = self.feed(x)
        return self.norm2(x + self.dropout(fed)), fed


class SpeechTransformer(nn.Module):
    """Convolutional positions and Transformer layers. Shapes: (B, T, D) -> (B, T, D).

    Args:
        width: D; 768 in base models, 1024 in large ones.
        depth: number of layers; 12 and 24.
        heads: attention heads; 12 and 16.
        hidden: hidden width of the feed-forward networks; None: 4 D.
        norm_first: pre-norm with a final norm (large), or post-norm with a norm before (base).
        position_kernel: see `ConvPositions`.
        position_groups: see `ConvPositions`.
        position_depth: see `ConvPositions`.
        dropout: dropout of the input and of both branches of a layer; 0.1 in base models.
        attention_dropout: of the attention weights; 0.1 in base models.
        activation_dropout: of the hidden activations; 0 in base models.
        layer_drop: probability with which a layer is skipped in training; 0.05 in base models.
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int | None = None,
        norm_first: bool = False,
        position_kernel: int = 128,
        position_groups: int = 16,
        position_depth: int = 1,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.05,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("heads", heads)):
            check_whole(name, value, 1)
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        check_interval("layer_drop", layer_drop, 0, 1, "[)")
        self.num_features, self.norm_first, self.layer_drop = width, norm_first, layer_drop
        self.positions: nn.Module = ConvPositions(
            width, position_kernel, position_groups, position_depth
        )
        rates = dropout, attention_dropout, activation_dropout
        self.layers = nn.ModuleList(
            SpeechLayer(width, heads, hidden or 4 * width, norm_first, *rates) for _ in range(depth)
        )
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def add_positions(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Add the positions; frames after `lengths` (B,) become zero. (B, T, D)."""
        if lengths is None:
            return x + self.positions(x)
        inside = length_mask(lengths, x.shape[1])[..., None]
        x = x * inside
        return x + self.positions(x, inside)

    def run(self, x: Tensor, lengths: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Run the layers on frames with positions.

        Args:
            x: (B, T, D) of `add_positions`.
            lengths: (B,) int64 frames of each sequence; None: all T.

        Returns:
            The input and the output of each layer, depth + 1 tensors of which `finish` makes the
            result, and each layer's feed-forward output before its residual. Frames after `lengths`
            have no meaning.
        """
        mask = None if lengths is None else length_mask(lengths.clamp_min(1), x.shape[1])
        mask = None if mask is None else mask[:, None, None]
        x = self.dropout(x if self.norm_first else self.norm(x))
        hidden, fed = [x], []
        for layer in self.layers:
            y, inner = layer(x, mask)
            if self.training and self.layer_drop:
                kept = torch.rand((), device=x.device) >= self.layer_drop
                y, inner = torch.where(kept, y, x.to(y.dtype)), torch.where(kept, inner, 0)
            x = y
            hidden.append(x)
            fed.append(inner)
        return hidden, fed

    def finish(self, x: Tensor) -> Tensor:
        """The result for the last layer's output: after the final norm in pre-norm. (B, T, D)."""
        return self.norm(x) if self.norm_first else x

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.finish(self.run(self.add_positions(x, lengths), lengths)[0][-1])


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
        """
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


def normalize_waveforms(values: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Normalize each waveform to mean 0 and variance 1, zero after its length.

    Silence becomes zeros, since 1e-5 is added to the variance.

    Args:
        values: (B, L).
        lengths: (B,) int64 samples of each; None: all L.
    """
    if lengths is None:
        return F.layer_norm(values, values.shape[1:])
    inside = length_mask(lengths, values.shape[1])
    count = lengths.clamp_min(1)[:, None]
    centered = (values - (values * inside).sum(1, keepdim=True) / count) * inside
    variance = centered.square().sum(1, keepdim=True) / count
    return centered * (variance + 1e-5).rsqrt()
