"""Sound files as they are: every sample type, rate and number of channels; truncated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslzoo.data import AudioFolder
from sslzoo.data.audio.sound_files import SoundFileError, num_samples
from sslzoo.transforms import Waveform

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE = 8000
TONE = 0.5 * np.sin(np.arange(RATE) * 0.3)
SUBTYPES = sorted(
    (kind, subtype)
    for kind in ("WAV", "FLAC", "AIFF", "OGG", "MP3")
    for subtype in soundfile.available_subtypes(kind)
    if soundfile.check_format(kind, subtype)
)


def folder(root: Path, **changes: Any) -> AudioFolder:
    given: dict[str, Any] = {"window": 400, "rate": RATE, "batch_size": 2, "labels": False}
    data = AudioFolder(str(root), Waveform(), **{**given, "seed": 1, "num_workers": 0, **changes})
    data.setup("fit")
    return data


def whole(data: AudioFolder) -> np.ndarray:
    """The first file; one training batch is read too."""
    next(iter(data.train_dataloader()))
    batch = data.eval_source(data.sets.train).__getitems__([0])
    return batch.views[0].values[0].numpy() / 32768


def write(root: Path, wave: np.ndarray, count: int = 2, ending: str = "wav", **given: Any) -> Path:
    for i in range(count):
        soundfile.write(root / f"{i}.{ending}", wave, given.pop("rate", RATE), **given)
    return root


@pytest.mark.parametrize(("kind", "subtype"), SUBTYPES)
def test_every_sample_type_of_libsndfile_keeps_its_scale(
    tmp_path: Path, kind: str, subtype: str
) -> None:
    try:
        write(tmp_path, TONE, ending=kind.lower(), subtype=subtype, format=kind)
    except soundfile.LibsndfileError:
        pytest.skip("libsndfile writes other rates or blocks alone")
    if subtype.startswith("DWVW"):  # soundfile seeks in it, which libsndfile cannot
        with pytest.raises(ValueError, match=r"cannot read the sound file .*0\.aiff"):
            folder(tmp_path)
        return
    got = whole(folder(tmp_path))[:RATE]
    coarse = subtype.startswith(("MPEG", "VORBIS", "OPUS", "G7", "NMS", "VOX", "GSM"))
    if coarse or "ADPCM" in subtype:
        assert got.std() == pytest.approx(TONE.std(), rel=0.3)
    else:
        room = 0.03 if subtype in ("PCM_U8", "PCM_S8", "ULAW", "ALAW") else 1e-4
        assert np.abs(got - TONE[: len(got)]).max() < room


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 11025, 48000])
def test_channels_are_averaged_and_rates_resampled(
    tmp_path: Path, channels: int, rate: int
) -> None:
    wave = 0.5 * np.sin(np.arange(rate) * 2 * np.pi * 300 / rate)
    write(tmp_path, np.stack([wave] * channels, 1), rate=rate)
    got = whole(folder(tmp_path))
    wanted = 0.5 * np.sin(np.arange(len(got)) * 2 * np.pi * 300 / RATE)
    assert np.abs(got - wanted)[300:-300].max() < 5e-3


RANGES = {
    "16 bits as floats": (TONE * 32768, (-32768, 32768)),
    "loud": (TONE * 3, (-1.5, 1.5)),
    "NaN": (np.where(TONE > 0.49, np.nan, TONE), None),
    "infinity": (np.where(TONE > 0.49, np.inf, TONE), None),
}


@pytest.mark.parametrize("decode", ["memory", "workers"])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("name", list(RANGES))
def test_floats_of_other_ranges_are_refused_and_never_skipped(
    tmp_path: Path, name: str, subtype: str, decode: Any
) -> None:
    wave, declared = RANGES[name]
    write(tmp_path, wave, subtype=subtype)
    with pytest.raises(ValueError, match=r"samples of a sound file must be .*, got .*0\.wav"):
        folder(tmp_path, decode=decode, on_broken="skip")
    if declared is not None:
        got = whole(folder(tmp_path, decode=decode, value_range=declared))
        assert np.abs(got - TONE * (2 if name == "loud" else 1)).max() < 1e-4


@pytest.mark.parametrize("decode", ["memory", "workers"])
@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("kept", [0, 3, 0.5])
def test_truncated_files_are_broken(
    tmp_path: Path, ending: str, kept: float, decode: Any, capfd: Any
) -> None:
    write(tmp_path, np.tile(TONE, 4), count=3, ending=ending)
    content = (tmp_path / f"1.{ending}").read_bytes()
    size = int(len(content) * kept) if kept < 1 else int(kept)
    (tmp_path / f"1.{ending}").write_bytes(content[:size])
    with pytest.raises(ValueError, match=rf"sound file .*1\.{ending}"):
        whole_set(folder(tmp_path, decode=decode))
    with pytest.warns(UserWarning, match="skipped"):
        assert skipped(tmp_path, decode) == 1


@pytest.mark.parametrize("cut", [1, 0.02, 0.5, 0.9])
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("OGG", "OPUS"), ("OGG", "VORBIS"), ("AU", "PCM_16"), ("AU", "ULAW"), ("W64", "PCM_16"),
        ("RF64", "FLOAT"), ("NIST", "PCM_16"), ("VOC", "PCM_16"), ("CAF", "PCM_16"),
    ],
)  # fmt: skip
def test_a_length_that_the_header_states_is_checked(
    tmp_path: Path, kind: str, subtype: str, cut: float
) -> None:
    path = tmp_path / "0.wav"  # libsndfile goes by the content
    soundfile.write(path, np.tile(TONE, 4), RATE, format=kind, subtype=subtype)
    assert num_samples(str(path), RATE) == pytest.approx(4 * RATE, abs=1)
    content = path.read_bytes()
    if cut == 1 and kind != "OGG":  # within the 1% that a writer may be wrong by
        path.write_bytes(content[:-1])
        assert num_samples(str(path), RATE) > 4 * RATE - 3
        return
    path.write_bytes(content[: -1 if cut == 1 else int(len(content) * (1 - cut))])
    with pytest.raises(SoundFileError, match=r"0\.wav"):
        num_samples(str(path), RATE)


def test_an_ogg_stream_must_have_its_last_page(tmp_path: Path) -> None:
    path = tmp_path / "0.opus"
    soundfile.write(path, np.tile(TONE, 4), RATE, format="OGG", subtype="OPUS")
    content = path.read_bytes()
    path.write_bytes(content + b"TAG" + bytes(125))  # an ID3 tag behind the stream
    assert num_samples(str(path), RATE) == 4 * RATE
    path.write_bytes(content[: content.rindex(b"OggS")])  # ends with a whole page
    with pytest.raises(SoundFileError, match=r"no end of the stream in .*0\.opus; if nothing is"):
        num_samples(str(path), RATE)


def skipped(root: Path, decode: Any) -> int:
    data = folder(root, decode=decode, on_broken="skip")
    whole_set(data)
    return data.num_broken


def whole_set(data: AudioFolder) -> None:
    for batch in data.eval_dataloaders().bank:
        assert batch.views[0].values.dtype == torch.int16


def test_a_stream_of_unknown_length_is_whole(tmp_path: Path) -> None:
    write(tmp_path, TONE)
    path = tmp_path / "0.wav"
    content = bytearray(path.read_bytes())
    where = content.index(b"data") + 4
    content[where : where + 4] = b"\xff\xff\xff\xff"  # as ffmpeg writes to a pipe
    path.write_bytes(content)
    assert np.abs(whole(folder(tmp_path)) - TONE).max() < 1e-4


def test_what_is_left_out_of_a_folder_is_said(tmp_path: Path) -> None:
    write(tmp_path, TONE)
    (tmp_path / "2.m4a").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"1 files are left out, .*2\.m4a"):
        folder(tmp_path)


@pytest.mark.filterwarnings("error")
def test_units_and_alignments_beside_the_classes_are_no_samples(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name, TONE)
    for name in ("x.units.npz", "phones.alignments.csv"):
        (tmp_path / name).write_text("")
    data = AudioFolder(str(tmp_path), Waveform(), 400, 2, RATE, val_dir=None)
    data.setup("fit")
    assert data.num_classes == 2
