"""`embed`: names and features of files of every kind, and going on after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sslzoo
from sslzoo.commands import embed as command
from sslzoo.runs import embed as module

ENTRY = "simclr-small_resnet-cifar10jpeg"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "photos" / "inner").mkdir(parents=True)
    for name, size in (("a.png", (40, 36)), ("inner/b.jpg", (32, 50)), ("inner/c.png", (64, 64))):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    return tmp_path / "photos"


def test_features_are_those_of_preprocess_and_the_encoder(photos: Path, tmp_path: Path) -> None:
    to = sslzoo.embed(ENTRY, [photos, photos / "a.png"], tmp_path / "x.npz", batch_size=2)
    written = np.load(to)
    names = ["a.png", "inner/b.jpg", "inner/c.png", "a.png"]
    assert written["path"].tolist() == [str(photos / name) for name in names]
    encoder: Any = sslzoo.load(ENTRY)
    with torch.no_grad():
        wanted = encoder(encoder.preprocess(written["path"].tolist()))  # takes paths, too
    np.testing.assert_allclose(written["features"], wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob("*.parts"))


def test_a_killed_run_goes_on_where_it_was(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", 1)
    features, embedded = module._Run.features, []

    def killed(self: Any, samples: list[Any], *where: int) -> Any:
        embedded.append(Path(samples[0].path).name)
        if len(embedded) == 3:
            raise KeyboardInterrupt
        return features(self, samples, *where)

    monkeypatch.setattr(module._Run, "features", killed)
    with pytest.raises(KeyboardInterrupt):
        sslzoo.embed(ENTRY, [photos], tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    sslzoo.embed(ENTRY, [photos], tmp_path / "x.npz")
    assert embedded == ["a.png", "b.jpg", "c.png", "c.png"]
    assert np.load(tmp_path / "x.npz")["features"].shape == (3, 256)


def test_two_at_once_never_mix_their_features(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", 1)
    features, others = module._Run.features, []

    def meanwhile(self: Any, samples: list[Any], *where: int) -> Any:
        if not others:
            others.append("nnclr-small_resnet-cifar10jpeg")
            with pytest.raises(ValueError, match=r"one process at a time, got '.*x\.npz'"):
                sslzoo.embed(others[0], [photos], tmp_path / "x.npz")
        return features(self, samples, *where)

    monkeypatch.setattr(module._Run, "features", meanwhile)
    sslzoo.embed(ENTRY, [photos], tmp_path / "x.npz")
    monkeypatch.undo()
    sslzoo.embed(ENTRY, [photos], tmp_path / "alone.npz")
    found, wanted = (np.load(tmp_path / f"{name}.npz")["features"] for name in ("x", "alone"))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["alone.npz", "x.npz"]


def test_an_unreadable_file_is_named_or_skipped(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png must be readable.*--on_broken=skip"):
        sslzoo.embed(ENTRY, [photos], tmp_path / "x.npz")
    command.main([ENTRY, str(photos), f"--to={tmp_path / 'x.npz'}", "--on_broken=skip"])
    out, err = capsys.readouterr()
    assert "b.png" in err
    assert out.strip() == str(tmp_path / "x.npz")
    assert len(np.load(tmp_path / "x.npz")["path"]) == 3


def test_lines_of_text_are_samples(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "lines.txt").write_text("A man plays.\n\nTwo dogs run.\n")
    entry = "simcse-small_transformer-stsb"
    written = np.load(sslzoo.embed(entry, [tmp_path / "lines.txt"], tmp_path / "t.npz"))
    assert written["row"].tolist() == [0, 2]
    assert written["features"].shape == (2, 128)


def test_sequences_of_an_array_are_samples(tmp_path: Path) -> None:
    entry, generator = "cpc-gru_small-pendulum", np.random.default_rng(0)
    encoder: Any = sslzoo.load(entry)
    many = generator.normal(size=(3, 40, 3)).astype(np.float32)
    np.save(tmp_path / "many.npy", many)
    np.save(tmp_path / "one.npy", many[1, :25])
    written = np.load(sslzoo.embed(entry, [tmp_path], tmp_path / "x.npz", batch_size=3))
    assert written["path"].tolist() == [
        *[str(tmp_path / "many.npy")] * 3,
        str(tmp_path / "one.npy"),
    ]
    assert written["row"].tolist() == [0, 1, 2, 0]
    with torch.no_grad():
        wanted = [encoder(encoder.preprocess([x])) for x in (*many, many[1, :25])]
    np.testing.assert_allclose(written["features"], torch.cat(wanted), rtol=1e-4, atol=1e-5)


def test_sounds_of_any_length_and_rate_are_samples(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    entry, generator = "cpc-gru_small-fsdd", np.random.default_rng(0)
    for name, rate, seconds in (("a.wav", 8000, 0.5), ("b.flac", 8000, 0.9), ("c.au", 16000, 0.7)):
        sound = generator.normal(size=int(rate * seconds)) / 10
        soundfile.write(tmp_path / name, sound, rate)
    names = [str(tmp_path / name) for name in ("a.wav", "b.flac", "c.au")]
    encoder: Any = sslzoo.load(entry)
    alone = [np.load(sslzoo.embed(entry, [name], tmp_path / "x.npz"))["features"] for name in names]
    written = np.load(sslzoo.embed(entry, [tmp_path], tmp_path / "x.npz"))
    assert written["path"].tolist() == names
    assert written["features"].shape == (3, encoder.num_features)
    np.testing.assert_allclose(written["features"], np.concatenate(alone), rtol=1e-4, atol=1e-5)
    assert len(np.unique(written["features"], axis=0)) == 3


def test_parquet_has_the_columns_of_npz(photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    whole = np.load(sslzoo.embed(ENTRY, [photos], tmp_path / "x.npz"))
    table = parquet.read_table(sslzoo.embed(ENTRY, [photos], tmp_path / "x.parquet"))
    assert sorted(table.column_names) == sorted(whole.files)
    for name in whole.files:
        assert np.array_equal(np.array(table[name].to_pylist()), whole[name])
