"""Read sound files of any libsndfile format as mono int16 at a given sampling rate.

The packages soundfile (WAV, FLAC, OGG, MP3) and soxr (resampling) come with
`pip install 'sslzoo[audio]'`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sslzoo.value_range import ValueRangeError, as_sound

SOUND_EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc",
                    ".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".voc")  # fmt: skip
_FLOATS = ("FLOAT", "DOUBLE")  # sample types without a range of their own
_DELAY = 4608  # samples that an MP3 may lack at its end: the delay of codecs, four frames
_RESERVOIR = 34_560  # samples: 30 frames of MP3, as 511 bytes hold at the lowest bit rate
_FROM_START = 1 << 20  # samples of an MP3 that are decoded without a seek
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
        SoundFileError: the file is unreadable, empty or truncated.
    """
    module = soundfile()
    try:
        header = module.info(path, verbose=True)
    except (module.LibsndfileError, OSError) as error:
        raise SoundFileError(f"cannot read the sound file {path} ({error})") from error
    _check_whole(path, header)
    length = header.frames * rate // header.samplerate
    if length < 1:
        raise SoundFileError(f"a sound file must have samples, got none in {path}")
    return int(length)


def _check_whole(path: str, header: Any) -> None:
    """Refuse a file that is shorter than its header says, or that lacks its end.

    Raises:
        SoundFileError: names both lengths, or the end that is missing.
    """
    log = header.extra_info
    chunk, unit = _SIZES.search(log), "bytes"
    said, held = map(int, chunk.groups()) if chunk else (0, 0)
    if header.subtype.startswith("MPEG"):
        said, held = _mpeg_bytes(path)
    elif header.format == "NIST":
        said, held, unit = _sphere_samples(path), header.frames, "samples"
    most = _UNKNOWN if header.format not in ("W64", "RF64") else math.inf
    if held < said < most and said - held > said // 100:
        raise SoundFileError(f"a sound file must be whole, got {held} of {said} {unit} in {path}")
    open_ended = header.format == "OGG" and not _has_last_page(path)
    if open_ended or "Seems to be a truncated file" in log:  # of VOC
        told = f"a sound file must be whole, got no end of the stream in {path}"
        if open_ended:  # some recorders never mark it
            told += "; if nothing is missing, ffmpeg -i FILE -c copy NEW marks the end"
        raise SoundFileError(told)


# libsndfile's log: "data : 96000 (should be 47978)" for WAV, SSND for AIFF, "Data Size" for AU; the
# sizes of the file itself, "riff" for W64 and "Riff size" for RF64.
_SIZES = re.compile(r"(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)")
_UNKNOWN = 0x7FFFF000  # bytes; recorders that cannot seek write this or more
_PAGE = 1 << 16  # bytes; an Ogg page has fewer


def _has_last_page(path: str) -> bool:
    """Whether an Ogg stream ends with a whole page that is marked as its last."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2 * _PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) <= 27 or not page[5] & 4:  # flags; sizes are behind 27 bytes
        return False
    return 27 + page[26] + sum(page[27 : 27 + page[26]]) <= len(page)


def _sphere_samples(path: str) -> int:
    """Samples per channel according to the header of a NIST SPHERE file; 0 if it does not say."""
    with open(path, "rb") as file:
        said = re.search(rb"\nsample_count -i (\d+)\s", file.read(1024))
    return int(said[1]) if said else 0


def _mpeg_bytes(path: str) -> tuple[int, int]:
    """Bytes of an MP3 according to its Xing header (0 without one), and those that it has."""
    with open(path, "rb") as file:
        start = file.read(10)
        tag = 0
        if start[:3] == b"ID3" and len(start) == 10:  # its size has 7 bits per byte
            tag = 10 + sum(byte << 7 * place for place, byte in enumerate(start[:5:-1]))
        file.seek(tag)
        head = file.read(256)
    where = max(head.find(b"Xing"), head.find(b"Info"))
    if where < 0 or not head[where + 7] & 2:
        return 0, 0
    at = where + 8 + 4 * (head[where + 7] & 1)  # after the number of frames
    return int.from_bytes(head[at : at + 4], "big"), os.path.getsize(path) - tag


def read_sound(
    path: str, rate: int, start: int, count: int, value_range: Sequence[float] | None = None
) -> np.ndarray:
    """Read samples start..start + count - 1 at `rate` as (count,) int16.

    Channels are averaged, and samples after the end of the file are 0. To resample, only the window
    and a margin for the filter are read.

    Args:
        path: the file.
        rate: sampling rate of the result in Hz.
        start: first sample.
        count: number of samples.
        value_range: the lowest and highest values of floating-point files; None: -1 and 1.

    Raises:
        SoundFileError: the file is unreadable, or ends before its header says.
        ValueRangeError: its floats are in another range.
    """
    module = soundfile()
    try:
        with module.SoundFile(path) as file:
            return _read(file, rate, start, count, value_range)
    except ValueRangeError as error:
        raise ValueRangeError(f"{error}; the file is {path}") from error
    except (module.LibsndfileError, OSError) as error:
        raise SoundFileError(f"cannot read the sound file {path} ({error})") from error


def _read(
    file: Any, rate: int, start: int, count: int, value_range: Sequence[float] | None
) -> np.ndarray:
    common = math.gcd(file.samplerate, rate)
    old, new = file.samplerate // common, rate // common  # `old` input samples give `new` samples
    if old == new and file.channels == 1 and file.subtype == "PCM_16":
        wave = _take(file, start, count, dtype="int16")
        return _fill(_expected(file, wave, start, count), count)
    if old == new:
        wave, skip = _mono(file, start, count, value_range), 0
    else:
        block = max(0, start - MARGIN) // new  # a position on the grid of both rates
        stop = (start + count + MARGIN) * old // new + 1
        read = max(0, stop - block * old)
        wave, skip = _mono(file, block * old, read, value_range), start - block * new
        wave = _resample(wave, file.samplerate, rate)
    scaled = np.rint(wave[skip : skip + count] * 32768.0)
    return _fill(np.clip(scaled, -32768, 32767).astype(np.int16), count)


def _take(file: Any, start: int, count: int, **how: Any) -> np.ndarray:
    """Samples start..start + count - 1 of a file that was just opened, or those that it has.

    Some codecs cannot seek. After a seek in MP3, libsndfile decodes the first frames without the
    bits that earlier ones hold for them, so those before `start` are decoded, too.
    """
    start = min(start, file.frames)
    first = start if file.seekable() else 0
    if file.subtype.startswith("MPEG"):
        first = max(0, start - _RESERVOIR) if start > _FROM_START else 0
    if first:
        file.seek(first)
    count = min(count, file.frames - start)  # a read behind the end fails in some MP3
    return file.read(start - first + count, **how)[start - first :]


def _mono(file: Any, start: int, count: int, value_range: Sequence[float] | None) -> np.ndarray:
    # float32 in all cases, since libsndfile does not scale float files to the range of int16.
    wave = _take(file, start, count, dtype="float32", always_2d=True)
    wave = _expected(file, wave, start, count)
    if file.subtype in _FLOATS:
        wave = as_sound(torch.from_numpy(wave), value_range, "samples of a sound file").numpy()
    return wave.mean(axis=1)


def _expected(file: Any, wave: np.ndarray, start: int, count: int) -> np.ndarray:
    """The samples read, if the file has as many as its header says.

    Raises:
        SoundFileError: it has fewer.
    """
    wanted = max(0, min(count, file.frames - start))
    if wanted - len(wave) > _DELAY:
        raise SoundFileError(
            f"a sound file must be whole, got {start + len(wave)} of {file.frames} samples in "
            f"{file.name}"
        )
    return wave


def _fill(wave: np.ndarray, count: int) -> np.ndarray:
    return wave if len(wave) == count else np.pad(wave, (0, count - len(wave)))
