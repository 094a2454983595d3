"""Sound: formats, rates, windows, layouts, broken files, buckets, one speaker a batch."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from sslzoo.backbones import SequenceEncoder, WaveEncoder
from sslzoo.batch import Padded
from sslzoo.data import AudioFolder
from sslzoo.data.audio.fields import parse_fields
from sslzoo.data.audio.sound_files import SoundFileError, num_samples, read_sound
from sslzoo.data.sampler import KeyedSampler
from sslzoo.eval.features import extract, gather_features
from sslzoo.heads import LinearSteps, Recurrent
from sslzoo.methods import CPC
from sslzoo.transforms import LogMel, LogMelImage, LogMelViews, Waveform
from tests.ranks import Ranks

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def tone(samples: int, rate: int = 8000, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)
    return np.stack([wave * (1 + c) for c in range(channels)], axis=1).squeeze()


def write(path: Path, wave: np.ndarray, rate: int = 8000, subtype: str | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype=subtype)
    return str(path)


def ramp(count: int, first: int = 1) -> np.ndarray:
    """int16 samples that say where they stand."""
    return np.arange(first, first + count, dtype=np.int16)


def digits(root: Path, lengths: tuple[int, ...] = (300, 420, 510, 640)) -> Path:
    """FSDD's names: two digits, three speakers, recordings 0 to 3."""
    for digit in range(2):
        for speaker in ("ann", "bob", "eve"):
            for n, length in enumerate(lengths):
                write(root / f"{digit}_{speaker}_{n}.wav", ramp(length))
    return root


def folder(root: Path, **changes: Any) -> AudioFolder:
    given: dict[str, Any] = {
        "transform": Waveform(),
        "window": 400,
        "batch_size": 4,
        "rate": 8000,
        "pattern": "{digit}_{speaker}_{n}.wav",
        "label": "digit",
        "group": "speaker",
        "query": {"n": [0]},
        "eval_batch_size": 4,
        "seed": 3,
    }
    data = AudioFolder(str(root), **{**given, **changes})
    data.setup("fit")
    return data


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_each_format_is_read_within_its_own_loss(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"tone.{ending}", tone(8000))
    got = read_sound(path, 8000, 2000, 4000) / 32768
    error = np.abs(got - tone(8000)[2000:6000]).max()
    assert error < (1e-4 if ending in ("wav", "flac") else 0.1)


@pytest.mark.parametrize("seeks", [False, True])
@pytest.mark.parametrize("ending", ["flac", "mp3", "ogg", "opus"])
def test_a_window_of_a_codec_is_a_piece_of_the_file(
    tmp_path: Path, ending: str, seeks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two channels at 48 kHz; MP3 is decoded from the start, and with a seek if it is long."""
    monkeypatch.setattr("sslzoo.data.audio.sound_files._FROM_START", 0 if seeks else 1 << 20)
    time = np.arange(48000 * 3) / 48000
    wave = 0.4 * np.sin(2 * np.pi * (200 + 100 * time) * time)
    path, options = str(tmp_path / f"a.{ending}"), {}
    if ending == "opus":
        options = {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(path, np.stack([wave, wave / 2], 1), 48000, **options)
    whole = read_sound(path, 48000, 0, len(wave)).astype(int)
    for start in (3000, 60000, 130000):
        part = read_sound(path, 48000, start, 4000)
        assert np.abs(whole[start : start + 4000] - part).max() <= 8
    resampled = read_sound(path, 8000, 0, 24000).astype(int)
    part = read_sound(path, 8000, 20000, 1000)
    assert np.abs(resampled[20000:21000] - part).max() <= 40


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_24", "PCM_U8", "DOUBLE"])
def test_other_sample_types_keep_their_scale(tmp_path: Path, subtype: str) -> None:
    path = write(tmp_path / "tone.wav", tone(800), subtype=subtype)
    got = read_sound(path, 8000, 0, 800) / 32768
    assert np.abs(got - tone(800)).max() < (0.01 if subtype == "PCM_U8" else 1e-4)


def test_channels_are_averaged_and_louder_ones_declared(tmp_path: Path) -> None:
    path = write(tmp_path / "stereo.wav", tone(800, channels=2))
    got = read_sound(path, 8000, 0, 800) / 32768
    assert np.abs(got - 1.5 * tone(800)).max() < 1e-4
    loud = write(tmp_path / "loud.wav", 3 * tone(800), subtype="FLOAT")
    with pytest.raises(
        ValueError, match=r"float from -1 to 1, got float32 from -1.5 to 1.5; .*loud"
    ):
        read_sound(loud, 8000, 0, 800)
    got = read_sound(loud, 8000, 0, 800, value_range=(-1.5, 1.5)) / 32768
    assert np.abs(got - 2 * tone(800)).max() < 1e-4


@pytest.mark.parametrize(("old", "new"), [(16000, 8000), (44100, 16000), (8000, 16000)])
def test_a_window_at_another_rate_is_that_of_the_whole_file(
    tmp_path: Path, old: int, new: int
) -> None:
    path = write(tmp_path / "tone.wav", tone(old, old), old)
    assert num_samples(path, new) == new
    wanted = tone(new, new)
    for start in (0, 1, 3333, new - 700):
        got = read_sound(path, new, start, 600) / 32768
        inside = slice(300, None) if start < 100 else slice(None, 300)  # not the file's own ends
        assert np.abs(got - wanted[start : start + 600])[inside].max() < 2e-3


@pytest.mark.parametrize("decode", ["memory", "workers"])
def test_windows_are_pieces_of_their_files(tmp_path: Path, decode: Any) -> None:
    data = folder(digits(tmp_path), decode=decode, num_workers=0)
    lengths = data.sets.train.lengths
    starts = set()
    for epoch in range(6):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert batch.views[0].dtype == torch.int16
            assert batch.views[0].shape == (4, 400)
            for wave, i in zip(batch.views[0].tolist(), batch.index.tolist(), strict=True):
                assert wave == list(range(wave[0], wave[0] + 400))
                assert 1 <= wave[0] <= lengths[i] - 399
                starts.add((i, wave[0]))
    assert len(starts) > 60


def test_windows_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    data = folder(digits(tmp_path))
    sampler = KeyedSampler(data.num_samples, 4)
    source = data.train_source(sampler)
    together, alone = source.__getitems__([1, 5, 7]), source.__getitems__([5])
    assert torch.equal(together.views[0][1:2], alone.views[0])
    sampler.set_epoch(1)
    assert not torch.equal(source.__getitems__([5]).views[0], alone.views[0])


def test_partners_are_windows_of_any_file_keyed_by_the_sample(tmp_path: Path) -> None:
    mel = LogMel(8000, bands=8, window=80, hop=40)
    data = folder(digits(tmp_path), transform=LogMelViews(mel, 8), eval_window=400)
    source = data.train_source(KeyedSampler(data.num_samples, 4))
    together, alone = source.__getitems__([1, 5, 7]), source.__getitems__([5])
    assert len(together.views) == 3
    for both, one in zip(together.views, alone.views, strict=True):
        assert torch.equal(both[1:2], one)
    first = source.__getitems__(list(range(18)))
    assert not torch.equal(first.views[1], first.views[2])
    assert [view.shape for view in data.train_views(first, 0).views] == [(18, 1, 8, 8)] * 2
    for batch in data.eval_dataloaders().query:
        assert data.eval_views(batch).views[0].shape[1:] == (1, 8, 9)


@pytest.mark.parametrize("short", ["pad", "loop"])
def test_short_files_fill_the_window(tmp_path: Path, short: Any) -> None:
    data = folder(digits(tmp_path, (300, 150)), short=short)
    loader = data.train_dataloader()
    for wave in torch.cat([batch.views[0] for batch in loader]):
        own = wave[wave > 0]
        if short == "pad":
            assert own.tolist() == list(range(1, 151))
        else:
            assert len(own) == 400
            assert set(own.tolist()) == set(range(1, 151))
            assert (wave.diff()[wave.diff() != 1] == -149).all()


def test_short_files_can_be_left_out_of_training(tmp_path: Path) -> None:
    data = folder(digits(tmp_path), short="skip", window=500)
    assert data.sets.train.lengths.unique().tolist() == [510, 640]
    assert len(data.sets.query) == 6  # evaluation has whole files
    with pytest.raises(ValueError, match=r"window must be at most .* got 5000"):
        folder(tmp_path, short="skip", window=5000)
    assert folder(tmp_path, min_samples=600).sets.train.lengths.unique().tolist() == [640]
    with pytest.raises(ValueError, match=r"min_samples must be at most .* 640 samples, got 641"):
        folder(tmp_path, min_samples=641)


def test_a_transform_of_another_rate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be the transform's 16000 Hz, got 8000 Hz"):
        folder(digits(tmp_path), transform=LogMelImage(16000))


class Masking:
    """What `setup` asks of a model whose masked span has 500 samples."""

    least_samples = 500


def test_recordings_shorter_than_a_masked_span_are_said(tmp_path: Path) -> None:
    data = folder(digits(tmp_path), short="mask")
    trainer = SimpleNamespace(lightning_module=Masking())
    data.trainer = trainer  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=r"6 of 18 recordings have fewer than 500 samples"):
        data.setup("fit")
    trainer.lightning_module.least_samples = 641
    with pytest.raises(ValueError, match=r"at least 641 .* 18 shorter ones, the longest 640"):
        data.setup("fit")
    looped = folder(tmp_path, short="loop")
    looped.trainer = trainer  # type: ignore[assignment]
    looped.setup("fit")


def test_batches_of_one_speaker_and_every_file_at_most_once(tmp_path: Path) -> None:
    data = folder(digits(tmp_path), batches="same_group", batch_size=4)
    speakers = data.sets.train.groups
    loader = data.train_dataloader()
    seen = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = [batch.index for batch in loader]
        assert len(batches) == len(loader) == 3  # six files a speaker: a batch of four each
        assert all(len(speakers[index].unique()) == 1 for index in batches)
        assert torch.cat(batches).unique().numel() == 12
        seen.append([index.tolist() for index in batches])
    assert seen[0] != seen[1]
    parts = [
        KeyedSampler(data.num_samples, 4, 3, groups=speakers, rank=r, world=2) for r in range(2)
    ]
    halves = [torch.tensor(list(part)).view(3, 2) for part in parts]
    assert torch.cat(halves, 1).tolist() == seen[0]
    with pytest.raises(ValueError, match=r"at most 6 .*, got 8"):
        folder(tmp_path, batches="same_group", batch_size=8)
    with pytest.raises(ValueError, match="files without groups"):
        folder(tmp_path, batches="same_group", group=None)


def test_the_query_set_is_the_fields_that_it_names(tmp_path: Path) -> None:
    data = folder(digits(tmp_path), query={"n": [0, 2], "speaker": ["ann"]})
    names = {Path(path).name for path in data.sets.query.listing.paths}
    assert names == {"0_ann_0.wav", "0_ann_2.wav", "1_ann_0.wav", "1_ann_2.wav"}
    assert data.num_samples == 20
    assert data.classes == ["0", "1"]
    assert data.sets.query.labels.tolist() == [0, 0, 1, 1]


def test_class_folders_and_files_without_labels(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 2)):
        for name in ("dog", "cat"):
            for i in range(count):
                write(tmp_path / part / name / f"{i}.flac", ramp(500))
    plain = {"pattern": None, "label": None, "group": None, "query": None}
    data = folder(tmp_path, **plain)
    assert (data.num_samples, len(data.sets.query), data.classes) == (12, 4, ["cat", "dog"])
    split = folder(tmp_path / "train", **plain, val_fraction=0.5)
    assert split.sets.query.labels.bincount().tolist() == [3, 3]
    free = folder(tmp_path, **plain, labels=False)
    assert free.num_samples == 12
    assert free.num_classes is free.sets.query is None
    with pytest.raises(ValueError, match=r"must hold the folders \['train', 'test'\]"):
        folder(tmp_path, **plain, val_dir="test")


def test_broken_files_are_named_or_skipped(tmp_path: Path) -> None:
    digits(tmp_path)
    (tmp_path / "0_ann_7.wav").write_bytes(b"no sound at all")
    soundfile.write(tmp_path / "0_ann_8.wav", np.zeros(0, np.int16), 8000)
    with pytest.raises(SoundFileError, match=r"0_ann_7\.wav"):
        folder(tmp_path)
    with pytest.warns(UserWarning, match=r"skipped: (cannot read|a sound file must)"):
        data = folder(tmp_path, on_broken="skip")
    assert data.num_samples == 18
    assert data.num_broken == 2
    with pytest.warns(UserWarning, match="skipped"):
        assert folder(tmp_path, on_broken="skip", decode="workers").num_broken == 2
    with pytest.warns(UserWarning, match=r"2 of 20 training \w+ were unreadable"):
        data.teardown("fit")


def test_a_file_that_breaks_later_is_replaced_by_the_next_of_its_batch(tmp_path: Path) -> None:
    data = folder(digits(tmp_path), decode="workers", num_workers=0, on_broken="skip")
    Path(data.sets.train.listing.paths[2]).write_bytes(b"gone")
    source = data.train_source(KeyedSampler(data.num_samples, 4))
    with pytest.warns(UserWarning, match="skipped"):
        batch = source.__getitems__([1, 2, 3])
    assert batch.index.tolist() == [1, 3, 3]
    assert torch.equal(batch.views[0][1], batch.views[0][2])
    assert data.num_broken == 1
    whole = data.eval_source(data.sets.train).__getitems__([1, 2, 3])
    assert whole.index.tolist() == [1, 3]
    with pytest.raises(ValueError, match="all 1 files of a batch"):
        source.__getitems__([2])


def encoder() -> SequenceEncoder:
    torch.manual_seed(0)
    return SequenceEncoder(WaveEncoder(4, (4, 4), (4, 4), (1, 1)), Recurrent(4, 5))


def test_evaluation_has_whole_files_of_about_one_length(tmp_path: Path) -> None:
    data = folder(digits(tmp_path), query={"speaker": ["eve"]})
    loaders = data.eval_dataloaders()
    widths = [batch.views[0].lengths for batch in loaders.bank]
    assert all(
        lengths.max() <= following.min()
        for lengths, following in zip(widths[:-1], widths[1:], strict=True)
    )
    model = encoder()
    found = gather_features(extract(model, loaders.bank, loaders, model))
    assert found.index.tolist() == list(range(16))
    assert torch.equal(found.label, data.sets.train.labels)
    wave = torch.from_numpy(ramp(510))[None]
    alone = model(Waveform().evaluation(Padded(wave, torch.tensor([510]))))
    rows = [i for i, n in enumerate(data.sets.train.lengths.tolist()) if n == 510]
    torch.testing.assert_close(found.features[rows], alone.expand(len(rows), -1))
    few = extract(model, loaders.bank, loaders, model, limit=5)
    assert sorted(few.index.tolist()) == list(range(5))


def test_evaluation_can_see_the_center_alone(tmp_path: Path) -> None:
    data = folder(digits(tmp_path), eval_window=400)
    short, long = data.eval_source(data.sets.query), data.eval_source(data.sets.train)
    wave = short.__getitems__([0]).views[0][0]  # 300 samples
    assert wave.tolist() == [0] * 50 + list(range(1, 301)) + [0] * 50
    i = data.sets.train.lengths.tolist().index(640)
    assert long.__getitems__([i]).views[0][0].tolist() == list(range(121, 521))


def _features_of_rank(rank: int, root: Path) -> tuple[list[int], torch.Tensor]:
    data = folder(root)
    loaders = data.eval_dataloaders()
    model = encoder().double()
    found = extract(model, loaders.bank, loaders, lambda x: model(Padded(x[0].double(), x[1])))
    every = gather_features(found)
    return every.index.tolist(), every.features


def test_two_ranks_have_the_features_of_one(ranks: Ranks, tmp_path: Path) -> None:
    index, features = _features_of_rank(0, digits(tmp_path))
    for others, theirs in ranks(2, _features_of_rank, tmp_path):
        assert others == index
        assert torch.equal(theirs, features)


def method() -> CPC:
    return CPC(
        encoder(),
        LinearSteps(5, 4, 3),
        num_negatives=4,
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-3),
    )


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_fit_and_predict_go_through_the_trainer(tmp_path: Path) -> None:
    data = folder(digits(tmp_path / "sound"))
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net = method()
    trainer.fit(net, datamodule=data)
    assert net.step == 8
    outputs = trainer.predict(net, datamodule=data)
    assert torch.cat([out["index"] for out in outputs]).sort().values.tolist() == list(range(6))
    assert torch.cat([out["features"] for out in outputs]).shape == (6, 5)


def test_a_missing_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "tone.wav", tone(800))
    real = builtins.__import__

    def without(*missing: str) -> Any:
        def find(name: str, *args: Any) -> Any:
            if name in missing:
                raise ImportError(name)
            return real(name, *args)

        return find

    monkeypatch.setattr(builtins, "__import__", without("soundfile"))
    with pytest.raises(ImportError, match=r"pip install 'sslzoo\[audio\]'"):
        read_sound(path, 8000, 0, 10)
    monkeypatch.setattr(builtins, "__import__", without("soxr"))
    with pytest.raises(ImportError, match=r"from 8000 Hz to 4000 .*sslzoo\[audio\]"):
        read_sound(path, 4000, 0, 10)


def test_names_that_do_not_match_are_shown() -> None:
    assert parse_fields(["a/b_c.wav"], "{x}/{y}_{z}.wav") == [{"x": "a", "y": "b", "z": "c"}]
    with pytest.raises(ValueError, match=r"match '{x}.wav', 1 do not, such as \['a/b.wav'\]"):
        parse_fields(["a/b.wav", "c.wav"], "{x}.wav")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"short": "cut"}, r"short must be one of \['pad', 'loop', 'skip', 'mask'\], got 'cut'"),
        ({"label": "word"}, r"without \['word'\]"),
        ({"query": {"n": [9]}}, "which matches 0 of 24"),
        ({"val_fraction": 0.5}, "query must be None with val_fraction"),
        ({"val_fraction": 1.5, "query": None}, r"in \(0, 1\), got 1.5"),
        ({"pattern": "{digit}-{n}.wav", "group": None, "query": None}, "24 do not, such as"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folder(digits(tmp_path), **changes)


def test_a_rate_that_is_not_the_nets_is_refused(tmp_path: Path) -> None:
    data = folder(digits(tmp_path))
    net: Any = SimpleNamespace(backbone=SimpleNamespace(rate=16000))
    data.trainer = SimpleNamespace(lightning_module=net)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="rate of the data must be the net's 16000 Hz, got 8000"):
        data.setup("fit")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold files of .*wav"):
        folder(tmp_path)
