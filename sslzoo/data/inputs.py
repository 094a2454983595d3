"""Encoder inputs: the evaluation preprocessing of sound, text and arrays, outside a data module."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sslzoo.batch import Padded, Tokens
from sslzoo.data.text.lines import ListLines, Sentences, Text
from sslzoo.data.text.tokenizer import TextTokenizer
from sslzoo.eval.fingerprint import described, text_digest
from sslzoo.random import Keys
from sslzoo.transforms.text.special import with_special
from sslzoo.value_range import as_sound, check_finite, from_array

_CHANNELS = 8  # waveforms of at most so many samples are rather (L, channels)


class AudioViews(Protocol):
    """Makes views of waveforms, on their device (`transforms.Waveform`)."""

    partners: int  # number of windows of other files that it needs per sample

    def __call__(self, waves: list[Tensor], keys: Keys) -> list[Tensor]:
        """Training views of 1 + partners windows, each (B, L) int16."""
        ...

    def evaluation(self, waves: Tensor | Padded) -> Tensor | Padded:
        """The evaluation view."""
        ...


def as_config(thing: object) -> dict[str, Any] | None:
    """The `class_path` and `init_args` that build an equal object.

    Args:
        thing: an object that stores each constructor argument under its name, as a plain value or
            another such object.

    Returns:
        The configuration, or None if the object does not store its arguments that way.
    """
    try:
        given = _arguments(thing)
        again = type(thing)(**given)
        public = [name for name in vars(again) if not name.startswith("_")]
        same = all(described(getattr(thing, n)) == described(getattr(again, n)) for n in public)
    except Exception:  # a failing constructor of a user's class must not prevent a checkpoint
        return None
    plain = {name: _plain(value) for name, value in given.items()}
    if not same or any(value is _UNKNOWN for value in plain.values()):
        return None
    return {"class_path": _class_path(type(thing)), "init_args": plain}


def _arguments(thing: object) -> dict[str, Any]:
    """The attributes named like the constructor's arguments.

    Raises:
        AttributeError: an attribute is missing.
    """
    return {name: getattr(thing, name) for name in inspect.signature(type(thing)).parameters}


_UNKNOWN = object()


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return _UNKNOWN if any(part is _UNKNOWN for part in parts) else parts
    config = as_config(value) if hasattr(value, "__dict__") else None
    return _UNKNOWN if config is None else config


def _class_path(kind: type) -> str:
    """The shortest import path of a class: that of the outermost package with it."""
    module = kind.__module__
    parts = module.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        package = ".".join(parts[:depth])
        if getattr(sys.modules.get(package), kind.__qualname__, None) is kind:
            module = package
    return f"{module}.{kind.__qualname__}"


@final
class WaveformInput:
    """The preprocessing of sound: the evaluation view of waveforms.

    Args:
        transform: makes the evaluation view (`transforms.Waveform`).
        rate: sampling rate in Hz; the caller resamples (`audio.sound_files.read_sound`).
        window: samples of the central window to cut out; None: the whole waveform.
    """

    def __init__(self, transform: AudioViews, rate: int, window: int | None = None) -> None:
        self.transform, self.rate, self.window = transform, rate, window

    def __call__(
        self,
        waves: Tensor | np.ndarray | Padded | Sequence[Tensor | np.ndarray],
        value_range: Sequence[float] | None = None,
    ) -> Tensor | Padded:
        """Preprocess waveforms: int16, or float in [-1, 1].

        Args:
            waves: tensors or arrays (B, L), one waveform (L,), `Padded`, or a list of (L,).
            value_range: the lowest and highest values; None: those of the type.

        Raises:
            ValueError: the waveforms have another shape, type or range.
        """
        if isinstance(waves, np.ndarray):
            waves = from_array(waves, "waveforms")
        if isinstance(waves, Tensor) and waves.ndim == 1 and len(waves):
            waves = waves[None]
        if not isinstance(waves, Tensor | Padded):
            waves = _padded(waves)
        values = waves if isinstance(waves, Tensor) else waves.values
        if values.dim() != 2 or not values.numel():
            raise ValueError(f"waveforms must be (B, L), got {tuple(values.shape)}")
        if values.shape[1] <= _CHANNELS < values.shape[0]:
            raise ValueError(
                f"waveforms must be (B, L), got {tuple(values.shape)}, which looks like channels; "
                "average them: waves.mean(1)"
            )
        if isinstance(waves, Padded):
            _check_lengths(waves, "waveforms")
        values = as_sound(values, value_range)
        waves = values if isinstance(waves, Tensor) else Padded(values, waves.lengths)
        if self.window is not None:
            waves = self._centers(waves)
        return self.transform.evaluation(waves)

    def fingerprint(self) -> str:
        """Hash of everything the preprocessing depends on."""
        return described(self)

    def lengths(self, samples: Tensor) -> Tensor:
        """Lengths of the views of waveforms of so many samples. Shapes: (B,) int64 -> (B,)."""
        lengths = samples if self.window is None else torch.full_like(samples, self.window)
        frames: Any = getattr(self.transform, "num_frames", None)
        return lengths if frames is None else frames(lengths)

    def _centers(self, waves: Tensor | Padded) -> Tensor:
        assert self.window is not None
        if isinstance(waves, Tensor):
            return _center(waves, self.window)
        each = zip(waves.values, waves.lengths.tolist(), strict=True)
        return torch.stack([_center(wave[:length], self.window) for wave, length in each])


def _center(wave: Tensor, window: int) -> Tensor:
    """The central window of the last dimension, zero-padded on both sides if it is shorter."""
    length = wave.shape[-1]
    if length >= window:
        return wave.narrow(-1, (length - window) // 2, window)
    before = (window - length) // 2
    return pad(wave, (before, window - length - before))


def _check_lengths(given: Padded, name: str) -> None:
    """Refuse lengths that are not one per sequence, or that the values do not have.

    Raises:
        ValueError: says what they must be, and what they are.
    """
    (count, most), lengths = given.values.shape[:2], given.lengths
    if lengths.shape != (count,) or lengths.dtype != torch.int64:
        raise ValueError(
            f"lengths of {name} must be ({count},) int64, got {tuple(lengths.shape)} "
            f"{str(lengths.dtype).rpartition('.')[2]}"
        )
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > most:
        raise ValueError(f"lengths of {name} must be in 1..{most}, got {low}..{high}")


def _padded(given: Any) -> Padded:
    several = list(given) if isinstance(given, list | tuple) else []
    waves = [from_array(x, "waveforms") if isinstance(x, np.ndarray) else x for x in several]
    if not waves or not all(isinstance(x, Tensor) and x.ndim == 1 and len(x) for x in waves):
        got = [tuple(getattr(x, "shape", ())) or type(x).__name__ for x in several] or given
        raise ValueError(
            "waveforms must be (B, L), (L,), or a non-empty list of (L,) tensors or arrays, got "
            f"{got!r:.200}"
        )
    if len({wave.dtype for wave in waves}) > 1:
        raise ValueError(f"waveforms must have one type, got {[wave.dtype for wave in waves]}")
    lengths = torch.tensor([len(wave) for wave in waves], device=waves[0].device)
    return Padded(torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True), lengths)


@final
class TextInput:
    """The preprocessing of text: token ids with [CLS] and [SEP].

    Args:
        tokenizer: a prepared tokenizer.
        max_length: tokens, including [CLS] and [SEP]; longer text is truncated.
    """

    def __init__(self, tokenizer: TextTokenizer, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, sentences: str | Sequence[str]) -> Tokens:
        """Tokenize B sentences, or one, to ids (B, L).

        Raises:
            ValueError: the argument is not a str or a list of them.
        """
        one = isinstance(sentences, str) or not isinstance(sentences, Iterable)
        lines: list[Any] = [sentences] if one else list(sentences)
        if not lines or not all(isinstance(line, str) for line in lines):
            raise ValueError(
                f"sentences must be a str or a non-empty list of str, got {sentences!r:.100}"
            )
        source = Sentences(Text(ListLines(lines)), self.tokenizer, self.max_length - 2)
        (tokens,) = source.__getitems__(list(range(len(lines)))).views
        return with_special(tokens, self.tokenizer.special)

    def fingerprint(self) -> str:
        """Hash of everything the preprocessing depends on."""
        return text_digest([self.tokenizer.digest, str(self.max_length)])


@final
class FrameInput:
    """The preprocessing of sequences (B, T, F) or `Padded`: standardized frames.

    Args:
        mean: mean per feature, F numbers or one, of the training set.
        std: standard deviation per feature, likewise.
    """

    def __init__(self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> None:
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(
        self, sequences: Tensor | np.ndarray | Padded | Sequence[Tensor | np.ndarray]
    ) -> Tensor | Padded:
        """Standardize sequences (B, T, F), one (T, F), `Padded`, or a list of (T, F).

        Raises:
            ValueError: they have another shape, are no numbers, or are not finite.
        """
        given: Any = sequences
        if isinstance(given, list | tuple) and not isinstance(given, Padded):
            given = _padded_frames(given)
        if isinstance(given, np.ndarray):
            given = from_array(given, "sequences")
        if isinstance(given, Tensor) and given.ndim == 2:
            given = given[None]
        values = given.values if isinstance(given, Padded) else given
        width = "F" if len(self.mean) == 1 else str(len(self.mean))
        shape = tuple(getattr(values, "shape", ()))
        if len(shape) != 3 or (width != "F" and shape[2] != len(self.mean)):
            got = shape or type(values).__name__
            raise ValueError(f"sequences must be (B, T, {width}), got {got}")
        check_finite(values, "sequences")
        if isinstance(given, Padded):
            _check_lengths(given, "sequences")
        if not isinstance(given, Padded):
            return self._scaled(values)
        return Padded(self._scaled(values) * given.mask[..., None], given.lengths)

    def fingerprint(self) -> str:
        """Hash of everything the preprocessing depends on."""
        return described(self)

    def _scaled(self, values: Tensor) -> Tensor:
        values = values.to(torch.float32)
        return (values - self.mean.to(values.device)) / self.std.to(values.device)


def _padded_frames(given: Sequence[Any]) -> Padded:
    parts = [from_array(x, "sequences") if isinstance(x, np.ndarray) else x for x in given]
    shapes = [tuple(getattr(x, "shape", ())) or type(x).__name__ for x in parts]
    good = parts and all(isinstance(x, Tensor) and x.ndim == 2 and len(x) for x in parts)
    if not good or len({x.shape[1] for x in parts}) > 1:
        raise ValueError(
            f"sequences must be (B, T, F), or a non-empty list of (T, F), got {shapes!r:.200}"
        )
    lengths = torch.tensor([len(x) for x in parts], device=parts[0].device)
    return Padded(torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), lengths)
