"""Sound files: any format of libsndfile, mixed to mono, resampled, as int16.

WAV, FLAC, OGG and MP3 by soundfile, other rates by soxr: `pip install 'sslzoo[audio]'`.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
MARGIN = 1024  # samples read beside a window, for the resampling filter to have its past


def soundfile() -> Any:
    """The module, or an error that says how to get it."""
    try:
        import soundfile as module
    except ImportError as error:
        raise ImportError(
            "sound files are read by the package soundfile, which is not installed; run: "
            "pip install 'sslzoo[audio]'"
        ) from error
    return module


def _resample(wave: np.ndarray, old: int, new: int) -> np.ndarray:
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"a file of {old} Hz is resampled to {new} Hz by the package soxr, which is not "
            "installed; run: pip install 'sslzoo[audio]'"
        ) from error
    return soxr.resample(wave, old, new)


class SoundFileError(ValueError):
    """A file that cannot be read as sound, or has no samples."""


def num_samples(path: str, rate: int) -> int:
    """Length at `rate`, from the file's header.

    Raises:
        SoundFileError: it cannot be read, or is empty.
    """
    module = soundfile()
    try:
        about = module.info(path)
    except (module.LibsndfileError, OSError) as error:
        raise SoundFileError(f"not readable as sound: {path} ({error})") from error
    length = about.frames * rate // about.samplerate
    if length < 1:
        raise SoundFileError(f"no samples in {path}")
    return int(length)


def read_sound(path: str, rate: int, start: int, count: int) -> np.ndarray:
    """Samples start..start + count - 1 at `rate`: (count,) int16.

    Channels are averaged. What lies behind the file's end is 0. At another rate than the file's
    only what the window needs (and a margin for the filter) is read.

    Raises:
        SoundFileError: it cannot be read.
    """
    module = soundfile()
    try:
        with module.SoundFile(path) as file:
            return _read(file, rate, start, count)
    except (module.LibsndfileError, OSError) as error:
        raise SoundFileError(f"not readable as sound: {path} ({error})") from error


def _read(file: Any, rate: int, start: int, count: int) -> np.ndarray:
    common = gcd(file.samplerate, rate)
    old, new = file.samplerate // common, rate // common  # `old` of the file's are `new` of ours
    if old == new and file.channels == 1 and file.subtype == "PCM_16":
        file.seek(start)
        return _fill(file.read(count, dtype="int16"), count)
    if old == new:
        file.seek(min(start, file.frames))
        wave, skip = _mono(file, count), 0
    else:
        block = max(0, start - MARGIN) // new  # a place that both rates have
        stop = (start + count + MARGIN) * old // new + 1
        file.seek(min(block * old, file.frames))
        wave, skip = _mono(file, max(0, stop - block * old)), start - block * new
        wave = _resample(wave, file.samplerate, rate)
    scaled = np.rint(wave[skip : skip + count] * 32768.0)
    return _fill(np.clip(scaled, -32768, 32767).astype(np.int16), count)


def _mono(file: Any, count: int) -> np.ndarray:
    # float32 even where integers would do: libsndfile scales floats to int16 by 1.
    return file.read(count, dtype="float32", always_2d=True).mean(axis=1)


def _fill(wave: np.ndarray, count: int) -> np.ndarray:
    return wave if len(wave) == count else np.pad(wave, (0, count - len(wave)))
