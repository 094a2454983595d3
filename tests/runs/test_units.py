"""Units of recordings: what is written is read with every window, and bad files are refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sslzoo.backbones import SequenceEncoder, WaveEncoder
from sslzoo.backbones.speech import ConvFrames, SpeechEncoder, SpeechTransformer
from sslzoo.batch import Batch, Padded, UnitSequence
from sslzoo.data import AudioFolder, WaveformInput
from sslzoo.data.audio.units import read_units, window_units, write_units
from sslzoo.heads import Recurrent
from sslzoo.runs import units as command
from sslzoo.runs.units import cluster_units
from sslzoo.transforms import LogMel, Waveform
from sslzoo.transforms.audio.log_mel_views import LogMelViews
from sslzoo.transforms.audio.mfcc import MFCC, differences

soundfile = pytest.importorskip("soundfile")
RATE = 8000


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings whose first half is low and second half high, of several lengths."""
    root = tmp_path_factory.mktemp("recordings")
    for i, half in enumerate((1200, 1600, 2000, 2400, 2800, 3200)):
        time = np.arange(half) / RATE
        wave = np.concatenate([np.sin(2 * np.pi * hertz * time) for hertz in (300, 2500)])
        soundfile.write(root / f"{i}.wav", 0.5 * wave, RATE)
    return root


def test_clusters_are_of_the_sound_and_windows_have_theirs(recordings: Path) -> None:
    pytest.importorskip("sklearn")
    target = recordings / "mfcc.units.npz"
    said = cluster_units(str(recordings), str(target), 2, RATE, fraction=1.0)
    assert "6 recordings, 100 per second, 2 of 2 clusters" in said
    paths = sorted(map(str, recordings.glob("*.wav")))
    table = read_units(target, paths)
    for i, half in enumerate((1200, 1600, 2000, 2400, 2800, 3200)):
        own = table.at(i, np.arange(0, 2 * half, 80), RATE)
        middle = half // 80
        assert len({*own[2 : middle - 6].tolist()}) == 1
        assert own[2] != own[middle + 6]
    data = AudioFolder(
        str(recordings), Waveform(), 3000, 6, RATE, labels=False, short="mask",
        units=[target.name], seed=0,
    )  # fmt: skip
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    (view,) = batch.views
    assert isinstance(view, UnitSequence)
    assert view.units.shape == (6, 1, 38)
    lengths = data.sets.train.lengths[batch.index].clamp_max(3000)
    assert torch.equal(view.lengths, lengths)
    made = data.train_views(batch, 0).views[0]
    for row in range(6):
        length, units = int(lengths[row]), view.units[row, 0]
        wave = made.values[row]
        assert (wave[length:] == 0).all()
        # Where the window is low, all of its units are those of low sound.
        low = wave[: length - length % 80].unfold(0, 80, 80).sign().diff(dim=1).ne(0).sum(1) < 15
        known = units[: len(low)] >= 0
        agree = low[known] == (units[: len(low)][known] == table.units[2])
        assert agree.double().mean() > 0.8


def speech() -> SpeechEncoder:
    transformer = SpeechTransformer(8, 2, 2, 12, position_kernel=6, position_groups=2)
    return SpeechEncoder(ConvFrames((4, 6), (10, 4), (5, 2)), transformer, rate=RATE)  # 25 samples


def cpc() -> SequenceEncoder:
    return SequenceEncoder(WaveEncoder(6, (10, 8), (5, 4), (2, 2)), Recurrent(6, 5))  # 21 samples


@pytest.fixture
def some_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four recordings of which two are shorter than a frame, and the encoder that is loaded."""
    for i, length in enumerate((4000, 20, 3000, 5)):
        soundfile.write(tmp_path / f"{i}.wav", np.sin(np.arange(length) / (3 + i)) / 2, RATE)

    def model(name: str) -> Any:
        net = {"speech": speech, "cpc": cpc}[name]()
        return SimpleNamespace(encoder=net, preprocess=lambda: WaveformInput(Waveform(), RATE))

    monkeypatch.setattr(command, "read_model", model)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "who", "counts"),
    [
        ({"rate": RATE}, "MFCC", [48, 0, 36, 0]),
        ({"encoder": "speech", "layer": 2}, "SpeechEncoder", [398, 0, 298, 0]),
        ({"encoder": "cpc", "layer": 1}, "SequenceEncoder", [199, 0, 149, 0]),
    ],
)
def test_recordings_shorter_than_a_frame_are_counted_before_any_is_clustered(
    some_short: Path, capsys: Any, given: Any, who: str, counts: list[int]
) -> None:
    to = str(some_short / "x.units.npz")
    few = counts.count(0)
    first = counts.index(0)
    told = (
        f"recordings must be long enough for a frame of {who}, got {few} of 4 \\(folder\\) that "
        f"are not, the first is .*{first}.wav with {(4000, 20, 3000, 5)[first]} samples at 8000 Hz"
    )
    with pytest.raises(ValueError, match=told + "; set on_broken: skip"):
        cluster_units(str(some_short), to, 2, **given)
    assert not Path(to).exists()
    said = cluster_units(str(some_short), to, 2, fraction=1.0, on_broken="skip", **given)
    assert f"{sum(counts)} units of 4 recordings" in said
    assert re.search(told + "; all of them have no units", capsys.readouterr().err)
    paths = [str(some_short / f"{i}.wav") for i in range(4)]
    table = read_units(to, paths)
    assert np.diff(table.starts).tolist() == counts
    (units,) = window_units([table], 3, np.arange(5), RATE)
    assert (units == -1).all()


def test_a_long_recording_is_encoded_in_parts_without_losing_a_frame(
    some_short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = speech().eval()
    given = SimpleNamespace(encoder=net, preprocess=lambda: WaveformInput(Waveform(), RATE))
    monkeypatch.setattr(command, "read_model", lambda name: given)
    source = command._encoder("speech", None, 2)
    wave = torch.rand(1, 3333, generator=torch.Generator().manual_seed(0)) - 0.5
    whole = source.features(wave)
    monkeypatch.setattr(command, "_CHUNK", 1000)
    parts = source.features(wave)
    assert len(whole) == len(parts) == int(net.num_frames(torch.tensor(3333)))
    frames = 1000 // net.frames.stride
    for start in (0, frames, 2 * frames):
        own = wave[:, start * net.frames.stride :][:, : net.samples(frames)]
        torch.testing.assert_close(parts[start : start + frames], source.features(own))
    assert not torch.allclose(whole, parts)  # the group norm and the attention see a part


def test_what_units_cannot_read_is_named_or_left_out(some_short: Path, capsys: Any) -> None:
    (some_short / "1.wav").write_bytes(b"")
    (some_short / "3.wav").write_bytes((some_short / "0.wav").read_bytes()[:2000])
    to = str(some_short / "x.units.npz")
    with pytest.raises(ValueError, match=r"1\.wav .*; set on_broken: skip to leave it out"):
        cluster_units(str(some_short), to, 2, RATE)
    said = cluster_units(str(some_short), to, 2, RATE, fraction=1.0, on_broken="skip")
    assert "units of 2 recordings" in said
    assert capsys.readouterr().err.count("skipped") == 2
    with pytest.raises(ValueError, match="rate must be the encoder's 8000 Hz, got 16000"):
        cluster_units(str(some_short), to, 2, 16000, "speech", 1)
    with pytest.raises(ValueError, match=r"layer must be in \[1, 2\], got 3"):
        cluster_units(str(some_short), to, 2, encoder="speech", layer=3)
    with pytest.raises(ValueError, match="rate of MFCC must be at least 1000, got 8"):
        cluster_units(str(some_short), to, 2, 8)


@pytest.mark.parametrize("rate", [11025, 22050, 44100])
def test_units_keep_time_at_rates_that_are_no_multiples_of_100(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(40 * rate) / 9) / 2, rate)
    cluster_units(str(tmp_path), str(tmp_path / "x.units.npz"), 2, rate)
    table = read_units(tmp_path / "x.units.npz", [str(tmp_path / "a.wav")])
    assert len(table.units) / table.rate == pytest.approx(40, abs=0.03)


def test_units_of_a_window_begin_at_its_first_sample(tmp_path: Path) -> None:
    write_units(tmp_path / "u.npz", [str(tmp_path / "a.wav")], [torch.arange(10)], 100, 10)
    table = read_units(tmp_path / "u.npz", [str(tmp_path / "a.wav")])
    samples = np.concatenate([np.arange(240, 800), np.full(160, -1)])
    (units,) = window_units([table], 0, samples, RATE)
    assert units.tolist() == [3, 4, 5, 6, 7, 8, 9, -1, -1]


def test_units_of_a_window_are_the_nearest(tmp_path: Path) -> None:
    """As in the authors' code, a unit begins at most half of one before or after its frame."""
    write_units(tmp_path / "u.npz", [str(tmp_path / "a.wav")], [torch.arange(10)], 100, 10)
    table = read_units(tmp_path / "u.npz", [str(tmp_path / "a.wav")])
    for start, first in ((0, 0), (39, 0), (41, 1), (119, 1), (121, 2)):
        (units,) = window_units([table], 0, np.arange(start, start + 240), RATE)
        assert units.tolist() == [first, first + 1, first + 2]


class Predicting:
    """What `setup` asks of a HuBERT."""

    def __init__(self, rate: float, num_units: int) -> None:
        self.unit_rate, self.head = rate, SimpleNamespace(num_units=[num_units])


@pytest.mark.parametrize(
    ("rate", "number", "share", "message"),
    [
        (100, 3, 1.0, None),
        (100.001, 3, 1.0, None),  # as a config may round it
        (
            50,
            3,
            1.0,
            r"unit_rate of the model must be that of 'u\.units.*, 100 per second, got 50",
        ),
        (100, 4, 1.0, r"num_units of the model's head must be .* \[3\], got \[4\]"),
        (100, 3, 0.5, r"must be those of the recordings, got 6 of other lengths, .* run sslzoo"),
    ],
)
def test_units_that_do_not_fit_are_refused(
    recordings: Path, rate: float, number: int, share: float, message: str | None
) -> None:
    paths = sorted(map(str, recordings.glob("*.wav")))
    counts = [round(share * soundfile.info(path).frames / 80) for path in paths]
    write_units(recordings / "u.units.npz", paths, [torch.arange(n) % 3 for n in counts], 100, 3)
    data = AudioFolder(
        str(recordings), Waveform(), 3000, 6, RATE, labels=False, units=["u.units.npz"], seed=0
    )
    model: Any = SimpleNamespace(lightning_module=Predicting(rate, number))
    data.trainer = model
    if message is None:
        data.setup("fit")
        return
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


def test_masked_windows_have_their_lengths(recordings: Path) -> None:
    data = AudioFolder(
        str(recordings), Waveform(), 3000, 6, RATE, labels=False, short="mask", seed=0
    )
    data.setup("fit")
    batch: Batch = data.train_views(next(iter(data.train_dataloader())), 0)
    (view,) = batch.views
    assert isinstance(view, Padded)
    assert view.lengths.tolist() == data.sets.train.lengths[batch.index].clamp_max(3000).tolist()


def test_bad_files_of_units_are_refused(recordings: Path, tmp_path: Path) -> None:
    paths = sorted(map(str, recordings.glob("*.wav")))
    with pytest.raises(ValueError, match="units must be a file that `sslzoo units` wrote"):
        read_units(tmp_path / "none.npz", paths)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="got one that cannot be read"):
        read_units(tmp_path / "text.npz", paths)
    write_units(recordings / "part.units.npz", paths[:2], [torch.arange(3)] * 2, 50, 3)
    with pytest.raises(ValueError, match=r"none of 4, such as .* run sslzoo units again"):
        read_units(recordings / "part.units.npz", paths)
    write_units(recordings / "high.units.npz", paths, [torch.arange(3)] * 6, 50, 2)
    with pytest.raises(ValueError, match=r"units in 0\.\.1 .* 18 units in 0\.\.2"):
        read_units(recordings / "high.units.npz", paths)
    with pytest.raises(ValueError, match="folder must hold recordings"):
        cluster_units(str(tmp_path), str(tmp_path / "x.units.npz"))
    with pytest.raises(ValueError, match=r"to must end in \.units\.npz, got 'x\.npz'"):
        cluster_units(str(recordings), "x.npz")
    with pytest.raises(ValueError, match="layer must be given with an encoder, got 3 without one"):
        cluster_units(str(recordings), str(tmp_path / "x.units.npz"), layer=3)
    with pytest.raises(ValueError, match=r"num_units must be at most the .* raise fraction"):
        cluster_units(str(recordings), str(tmp_path / "x.units.npz"), 5000, RATE)
    with pytest.raises(ValueError, match="transform must be Waveform with units or short='mask'"):
        AudioFolder(str(recordings), LogMelViews(LogMel(RATE)), short="mask")


def test_mfcc_of_a_frame_is_the_formula() -> None:
    """One frame at 8 kHz, coefficient by coefficient."""
    wave = torch.rand(1, 200, generator=torch.Generator().manual_seed(0)).double() - 0.5
    x = wave[0].numpy() - wave[0].numpy().mean()
    x = x - 0.97 * np.concatenate([x[:1], x[:-1]])
    x = x * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 199)) ** 0.85
    power = np.abs(np.fft.rfft(x, 256)) ** 2

    def mel(hertz: float) -> float:
        return 1127 * np.log(1 + hertz / 700)

    step = (mel(4000) - mel(20)) / 24
    logs = []
    for band in range(23):
        left = mel(20) + band * step
        total = 0.0
        for k in range(128):
            m = mel(k * 8000 / 256)
            if left < m < left + 2 * step:
                total += power[k] * min((m - left) / step, (left + 2 * step - m) / step)
        logs.append(np.log(total))
    got = MFCC(RATE)(wave)
    assert got.shape == (1, 1, 39)
    for i in range(13):
        scale = np.sqrt((1 if i == 0 else 2) / 23) * (1 + 11 * np.sin(np.pi * i / 22))
        terms = [logs[n] * np.cos(np.pi * i * (n + 0.5) / 23) for n in range(23)]
        assert got[0, 0, i].item() == pytest.approx(scale * sum(terms), rel=1e-4, abs=1e-4)
    assert (got[..., 13:] == 0).all()  # of one frame


def test_differences_of_a_line_are_its_slope() -> None:
    line = 3.0 * torch.arange(9.0)[None, :, None]
    torch.testing.assert_close(differences(line)[0, 2:7, 0], torch.full((5,), 3.0))
    with pytest.raises(ValueError, match=r"25 ms.* must be at least 200, got 199"):
        MFCC(RATE)(torch.zeros(1, 199))
