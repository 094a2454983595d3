"""Encoders of Hugging Face's transformers as backbones: speech, images and text, by name.

Code of a repository is never run, and weights are read from safetensors alone. What an encoder has
and its features do not use (poolers, mask tokens, layer drop, SpecAugment) is removed or frozen.
Dropout is torch's, not keyed.

Shapes: B samples, L samples of a waveform or tokens of a text, T frames, N tokens, D width.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.backbones.conv_frames import normalize_waveforms
from sslzoo.backbones.hf_models import load_hf, preprocessing_of
from sslzoo.backbones.text import text_encoder
from sslzoo.batch import Padded, UnitSequence, check_frames, length_mask
from sslzoo.trust.hub_cache import folder_on_disk

Sound = Tensor | Padded | UnitSequence
_MAP = 4  # dimensions of a feature map
_SAMPLES = 160  # samples between the frames of Whisper's spectrogram


def hf(
    name: str,
    pooling: Literal["cls", "mean"] | None = None,
    pretrained: bool = True,
    num_ids: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """A Hugging Face encoder of speech, images or text by name.

    - speech (wav2vec 2.0, HuBERT, WavLM, data2vec, SEW; the encoder of Whisper): waveforms (B, L)
      or `Padded` -> `HFSpeech` or `HFWhisper`.
    - images (ViT, DeiT, DINOv2, DINOv3, BEiT, Swin, ConvNeXt, ResNet and others): `HFTokens` or
      `HFMaps`.
    - text (BERT, RoBERTa, DistilBERT, MPNet, E5 and others): `Tokens` -> `HFEncoder`.

    Args:
        name: a name of the Hub such as "facebook/wav2vec2-base", "facebook/dinov2-small" or
            "intfloat/e5-small-v2", or a folder with `config.json` and `model.safetensors`.
        pooling: features are the first token ("cls") or a mean ("mean"); None: the first for text
            and for images if the net has a class token, else the mean. Speech: the mean.
        pretrained: whether to load the weights; otherwise only the configuration is loaded.
        num_ids: for text, number of rows to which the embedding is resized.
        revision: branch, tag or commit of the repository; None: the newest.
        local_files_only: use local files only, without a download.

    Raises:
        ValueError: transformers is not installed, the repository needs code of its own, its
            weights are broken, lack tensors or have other shapes than its config, the encoder is
            none of these, or the first token that it would be pooled by attends to no other.
        OSError: it does not exist or is not on this machine, or has no weights in safetensors.
    """
    name = folder_on_disk(name, revision) if local_files_only else name
    model = load_hf(name, pretrained, revision or "main")
    about = preprocessing_of(name, revision or "main")
    kind = getattr(model, "main_input_name", "")
    if kind == "input_ids":
        return text_encoder(model, num_ids, pooling or "cls", pretrained)
    if kind == "pixel_values":
        looks = about.get("image_mean"), about.get("image_std")
        looks = looks if about.get("do_normalize", True) else (None, None)
        if _gives_tokens(model):
            return HFTokens(model, pooling, *looks)
        return HFMaps(model, *looks)
    rate = int(about.get("sampling_rate", 16000))
    if model.config.model_type == "whisper":
        return HFWhisper(model, rate)
    if kind == "input_values" and hasattr(model, "feature_extractor"):
        layer_norm = getattr(model.config, "feat_extract_norm", "layer") == "layer"
        return HFSpeech(model, rate, bool(about.get("do_normalize", layer_norm)))
    raise ValueError(
        f"name must be of an encoder of waveforms, images or token ids, got {name!r}, a "
        f"{type(model).__name__} of {kind or 'several inputs'}"
    )


class HFSound(nn.Module, ABC):
    """Base class of encoders of waveforms; subclasses implement `forward_layers`.

    Padding changes nothing.

    Attributes:
        num_features: D.
        rate: sampling rate in Hz that the net takes; data of another one are refused.
    """

    def __init__(self, model: nn.Module, rate: int) -> None:
        super().__init__()
        self.model: Any = model
        self.num_features = int(cast(Any, model).config.hidden_size)
        self.rate = rate

    @abstractmethod
    def forward_layers(self, x: Sound) -> tuple[list[Tensor], Tensor]:
        """The Transformer's input and each layer's output (B, T, D), and the frames (B,).

        The last is the net's result, after its final norm if it has one.
        """

    def forward_frames(self, x: Sound) -> Padded:
        """The last layer's frames (B, T, D) with their number per waveform."""
        layers, lengths = self.forward_layers(x)
        return Padded(layers[-1], lengths)

    def forward(self, x: Sound) -> Tensor:
        """The mean over a waveform's frames, (B, D)."""
        frames = self.forward_frames(x)
        inside = length_mask(frames.lengths, frames.values.shape[1])[..., None]
        return (frames.values * inside).sum(1) / frames.lengths[:, None]


class HFSpeech(HFSound):
    """wav2vec 2.0's line in transformers: convolutions over the waveform and a Transformer.

    Waveforms of several lengths run in groups of one length, since group norm and convolutional
    positions of transformers see the padding. `SpeechEncoder` with converted weights has no such
    groups, and is what `methods.Wav2Vec2`, `HuBERT` and `Data2Vec` train.

    Args:
        model: with `feature_extractor` and `_get_feat_extract_output_lengths`.
        rate: sampling rate in Hz.
        normalize: whether each waveform is normalized to mean 0 and variance 1.
    """

    def __init__(self, model: nn.Module, rate: int = 16000, normalize: bool = False) -> None:
        super().__init__(model, rate)
        self.normalize = normalize

    def num_frames(self, lengths: Tensor) -> Tensor:
        """The number of frames of waveforms of these lengths. Shapes: (B,) int64 -> (B,)."""
        return self.model._get_feat_extract_output_lengths(lengths).clamp_min(0)

    def forward_layers(self, x: Sound) -> tuple[list[Tensor], Tensor]:
        if isinstance(x, Tensor):
            layers = self._run(x)
            return layers, torch.full((len(x),), layers[0].shape[1], device=x.device)
        values, lengths = x[:2]
        frames = self.num_frames(lengths)
        # They are read below in any case.
        check_frames(lengths.cpu(), frames.cpu(), type(self.model).__name__)
        out: list[Tensor] = []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            layers = self._run(values[rows, :length])
            size = len(values), int(frames.max()), self.num_features
            out = out or [layer.new_zeros(size) for layer in layers]
            short = size[1] - layers[0].shape[1]
            out = [
                whole.index_copy(0, rows, F.pad(layer, (0, 0, 0, short)))
                for whole, layer in zip(out, layers, strict=True)
            ]
        return out, frames

    def _run(self, values: Tensor) -> list[Tensor]:
        size = torch.tensor([values.shape[1]])
        check_frames(size, self.num_frames(size), type(self.model).__name__)
        values = normalize_waveforms(values) if self.normalize else values
        found = self.model(values, output_hidden_states=True)
        return [*found.hidden_states[:-1], found.last_hidden_state]  # the last after its norm


class HFWhisper(HFSound):
    """Whisper's encoder, with its log-mel spectrogram of 10 ms frames on the device.

    Radford et al., ICML 2023, https://arxiv.org/abs/2212.04356. Waveforms are padded with silence
    to the encoder's window (30 s), as in its training; only the frames of the waveform itself are
    given, one per 20 ms.

    Args:
        model: the encoder of `WhisperModel`.
        rate: sampling rate in Hz.
    """

    filters: Tensor
    hann: Tensor

    def __init__(self, model: nn.Module, rate: int = 16000) -> None:
        from transformers.audio_utils import mel_filter_bank

        super().__init__(model, rate)
        config = self.model.config
        self.window = 2 * _SAMPLES * config.max_source_positions
        mel = mel_filter_bank(201, config.num_mel_bins, 0.0, 8000.0, rate, "slaney", "slaney")
        self.register_buffer("filters", torch.from_numpy(mel).float(), persistent=False)
        self.register_buffer("hann", torch.hann_window(400), persistent=False)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """The number of frames of waveforms of these lengths. Shapes: (B,) int64 -> (B,)."""
        return (lengths + 2 * _SAMPLES - 1) // (2 * _SAMPLES)

    def log_mel(self, values: Tensor) -> Tensor:
        """Whisper's normalized log-mel spectrogram (B, mels, frames) of the padded window."""
        values = F.pad(values.float(), (0, self.window - values.shape[1]))
        hann = self.hann.to(values)
        spectrum = torch.stft(values, 400, _SAMPLES, window=hann, return_complex=True)
        power = spectrum[..., :-1].abs().square()
        mel = (self.filters.to(values).T @ power).clamp_min(1e-10).log10()
        return (mel.maximum(mel.amax((1, 2), keepdim=True) - 8) + 4) / 4

    def forward_layers(self, x: Sound) -> tuple[list[Tensor], Tensor]:
        values, lengths = (x, None) if isinstance(x, Tensor) else x[:2]
        if values.shape[1] > self.window:
            raise ValueError(
                f"waveforms must have at most {self.window} samples, the window of Whisper's "
                f"encoder, got {values.shape[1]}; set window and eval_window of the data"
            )
        if lengths is None:
            lengths = torch.full((len(values),), values.shape[1], device=values.device)
        values = values * length_mask(lengths, values.shape[1])
        mel = self.log_mel(values).to(self.model.conv1.weight.dtype)
        hidden = self.model(mel, output_hidden_states=True).hidden_states
        frames = self.num_frames(lengths)
        most = -(-values.shape[1] // (2 * _SAMPLES))
        return [layer[:, :most] for layer in hidden], frames


class HFTokens(nn.Module):
    """A vision transformer of transformers. Shapes: (B, C, H, W) -> (B, D).

    Images of other sizes than the net's get interpolated positions, where transformers has them.

    Args:
        model: whose `last_hidden_state` is (B, R + N, D), with R tokens before the N patches.
        pooling: "cls": the class token; "mean": the mean of the patches; None: the class token if
            there is one.
        expected_mean: mean per channel that the net's images are normalized with; None: unknown. A
            data module that does otherwise warns.
        expected_std: the standard deviations.

    Attributes:
        num_features: D.
        map_features: D.
        num_prefix: R.
    """

    def __init__(
        self,
        model: nn.Module,
        pooling: Literal["cls", "mean"] | None = None,
        expected_mean: list[float] | None = None,
        expected_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        config, embeddings = cast(Any, model).config, getattr(model, "embeddings", None)
        self.num_features = self.map_features = int(config.hidden_size)
        names = ("cls_token", "class_embedding", "distillation_token")
        prefix = [getattr(embeddings, name, None) is not None for name in names]
        self.num_prefix = sum(prefix) + (getattr(config, "num_register_tokens", None) or 0)
        has_class = any(prefix[:2])
        if pooling == "cls" and not has_class:
            raise ValueError(
                f"pooling must be 'mean' for {type(model).__name__}, which has no class token, got "
                "'cls'"
            )
        self.pooling = pooling or ("cls" if has_class else "mean")
        self.expected_mean, self.expected_std = expected_mean, expected_std
        takes = inspect.signature(self.model.forward).parameters
        name = "interpolate_pos_encoding"
        self._options = {name: True} if name in takes else {}

    def forward_tokens(self, images: Tensor) -> Tensor:
        """The last layer's tokens after its norm, (B, R + N, D)."""
        found: Tensor = self.model(images, **self._options).last_hidden_state
        if self.model.config.model_type == "clip_vision_model":
            return self.model.post_layernorm(found)  # CLIP's is of the class token alone
        return found

    def forward_map(self, images: Tensor) -> Tensor:
        """The patches as a map (B, D, h, w)."""
        patches = self.forward_tokens(images)[:, self.num_prefix :]
        height, width = images.shape[2:]
        rows = round(math.sqrt(patches.shape[1] * height / width))
        return patches.mT.unflatten(2, (rows, -1))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.forward_tokens(images)
        return tokens[:, 0] if self.pooling == "cls" else tokens[:, self.num_prefix :].mean(1)


class HFMaps(nn.Module):
    """A convolutional net of transformers. Shapes: (B, C, H, W) -> (B, D).

    Args:
        model: whose `last_hidden_state` is (B, D, h, w), and whose features are
            `pooler_output`, or else the mean of the map.
        expected_mean: see `HFTokens`.
        expected_std: see `HFTokens`.

    Attributes:
        num_features: D.
        map_features: D.
    """

    def __init__(
        self,
        model: nn.Module,
        expected_mean: list[float] | None = None,
        expected_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.num_features = self.map_features = int(cast(Any, model).config.hidden_sizes[-1])
        self.expected_mean, self.expected_std = expected_mean, expected_std

    def forward_map(self, images: Tensor) -> Tensor:
        """The last stage's map (B, D, h, w)."""
        found: Tensor = self.model(images).last_hidden_state
        if found.ndim == _MAP:
            return found
        rows = round(math.sqrt((found.shape[1] - 1) * images.shape[2] / images.shape[3]))
        return found[:, 1:].mT.unflatten(2, (rows, -1))  # DINOv3's, behind the pooled features

    def forward(self, images: Tensor) -> Tensor:
        found = self.model(images)
        pooled = getattr(found, "pooler_output", None)
        return found.last_hidden_state.mean((2, 3)) if pooled is None else pooled.flatten(1)


def _gives_tokens(model: Any) -> bool:
    return isinstance(getattr(model.config, "hidden_size", None), int)
