"""Read sound files of any libsndfile format as mono int16 at a given sampling rate.

The packages soundfile (WAV, FLAC, OGG, MP3) and soxr (resampling) come with
`pip install 'sslzoo[audio]'`.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

SOUND_EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
MARGIN = 1024  # samples read on either side of a window, as context of the resampling filter


def soundfile() -> Any:
    """Import the module, or raise an error that tells how to install it."""
    try:
        import soundfile as module
    except ImportError as error:
        raise ImportError(
            "sound files need the package soundfile, which is not installed; run: "
            "pip install 'sslzoo[audio]'"
        ) from error
    return module


def _resample(wave: np.ndarray, old: int, new: int) -> np.ndarray:
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"resampling from {old} Hz to {new} Hz needs the package soxr, which is not installed; "
            "run: pip install 'sslzoo[audio]'"
        ) from error
    return soxr.resample(wave, old, new)


class SoundFileError(ValueError):
    """A sound file is unreadable or empty."""


def num_samples(path: str, rate: int) -> int:
    """Number of samples at `rate`, from the file's header.

    Raises:
        SoundFileError: the file is unreadable or empty.
    """
    module = soundfile()
    try:
        header = module.info(path)
    except (module.LibsndfileError, OSError) as error:
        raise SoundFileError(f"cannot read the sound file {path} ({error})") from error
    length = header.frames * rate // header.samplerate
    if length < 1:
        raise SoundFileError(f"a sound file must have samples, got none in {path}")
    return int(length)


def read_sound(path: str, rate: int, start: int, count: int) -> np.ndarray:
    """Read samples start..start + count - 1 at `rate` as (count,) int16.

    Channels are averaged, and samples after the end of the file are 0. To resample, only the window
    and a margin for the filter are read.

    Raises:
        SoundFileError: the file is unreadable.
    """
    module = soundfile()
    try:
        with module.SoundFile(path) as file:
            return _read(file, rate, start, count)
    except (module.LibsndfileError, OSError) as error:
        raise SoundFileError(f"cannot read the sound file {path} ({error})") from error


def _read(file: Any, rate: int, start: int, count: int) -> np.ndarray:
    common = gcd(file.samplerate, rate)
    old, new = file.samplerate // common, rate // common  # `old` input samples give `new` samples
    if old == new and file.channels == 1 and file.subtype == "PCM_16":
        file.seek(start)
        return _fill(file.read(count, dtype="int16"), count)
    if old == new:
        file.seek(min(start, file.frames))
        wave, skip = _mono(file, count), 0
    else:
        block = max(0, start - MARGIN) // new  # a position on the grid of both rates
        stop = (start + count + MARGIN) * old // new + 1
        file.seek(min(block * old, file.frames))
        wave, skip = _mono(file, max(0, stop - block * old)), start - block * new
        wave = _resample(wave, file.samplerate, rate)
    scaled = np.rint(wave[skip : skip + count] * 32768.0)
    return _fill(np.clip(scaled, -32768, 32767).astype(np.int16), count)


def _mono(file: Any, count: int) -> np.ndarray:
    # float32 in all cases, since libsndfile does not scale float files to the range of int16.
    return file.read(count, dtype="float32", always_2d=True).mean(axis=1)


def _fill(wave: np.ndarray, count: int) -> np.ndarray:
    return wave if len(wave) == count else np.pad(wave, (0, count - len(wave)))
