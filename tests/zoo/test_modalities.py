"""Encoders of sound, text and arrays: a run becomes an entry that takes samples as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import sslzoo
from sslzoo.backbones import FrameMLP, SequenceEncoder
from sslzoo.batch import Padded
from sslzoo.data import FrameInput, TextInput, WaveformInput, WordPiece
from sslzoo.eval.features import extract
from sslzoo.heads import Recurrent
from sslzoo.runs.encoders import build_data
from sslzoo.transforms import LogMel, Waveform
from sslzoo.zoo.card import Card, card_of
from sslzoo.zoo.preprocess import of_checkpoint, preprocessor, tokenizer_json, vocabulary
from sslzoo.zoo.save import add_run, save, save_with_card
from sslzoo.zoo.verifying import verify
from tests.commands.command import run
from tests.data.text.test_datamodule import sentences

QUIET = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]


def entry(config: str, root: Path, tmp_path: Path, *changes: str) -> tuple[Any, Any]:
    """A run of the command as an entry: the loaded encoder, and the run's data module."""
    out = f"--trainer.default_root_dir={tmp_path / 'run'}"
    run(["fit", "--config", config, f"--data.root={root}", out, *QUIET, *changes], tmp_path)
    folder = tmp_path / "run" / "version_0"
    config = folder / "config.yaml"
    content = config.read_text()
    config.write_text(content.replace(str(root), "/nowhere"))  # no data is needed
    card = add_run(folder, "mine", "a test", "CC0-1.0", tmp_path / "zoo")
    assert len(card.features) == 4
    path = tmp_path / "zoo" / "mine.safetensors"
    assert verify(str(path)) == card
    # A checkpoint of version 0.1 says nothing: the data is built.
    config.write_text(content)
    old = add_run(folder, "old", "a test", "CC0-1.0", tmp_path / "zoo", checkpoint=before(folder))
    assert old.preprocessing == card.preprocessing
    assert old.features == card.features
    data: Any = build_data(yaml.safe_load(content)["data"])
    data.setup("validate")
    return sslzoo.load(str(path)), data


def before(folder: Path) -> Path:
    """The checkpoint of a run as version 0.1 would have written it."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    said, metadata = of_checkpoint(saved)
    assert said is not None
    if "tokenizer" in metadata:
        assert WordPiece.from_json(metadata["tokenizer"]).digest == vocabulary(saved)
    for part in saved.values():
        if isinstance(part, dict) and "preprocessing" in part:
            del part["preprocessing"]
            part.pop("tokenizer_json", None)
    torch.save(saved, folder / "old.ckpt")
    assert of_checkpoint(torch.load(folder / "old.ckpt", weights_only=True)) == (None, {})
    return folder / "old.ckpt"


def features(encoder: Any, samples: Any) -> Tensor:
    with torch.no_grad():
        return encoder(encoder.preprocess(samples))


def test_a_run_on_sound_takes_waveforms(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    root, draw = tmp_path / "sound", np.random.default_rng(0)
    root.mkdir()
    waves = [
        (3000 * draw.standard_normal(4000 + 700 * i)).clip(-32768, 32767).astype(np.int16)
        for i in range(10)
    ]
    for i, wave in enumerate(waves):
        for digit in range(2):
            soundfile.write(root / f"{digit}_ann_{i}.wav", wave >> digit, 8000)
    small = ["--data.batch_size=4", "--data.window=1600", "--model.num_negatives=4"]
    small.append("--trainer.callbacks=sslzoo.callbacks.OnlineSpectrum")
    encoder, data = entry("cpc/folder_small_fsdd_100ep", root, tmp_path, *small)
    assert (encoder.card.kind, encoder.preprocess.rate) == ("waveform", 8000)
    got = features(encoder, [torch.from_numpy(wave) for wave in waves])
    loaders = data.eval_dataloaders()  # whole files, those of recording 5 among the bank
    bank = extract(encoder, loaders.bank, loaders, "forward", "cpu")
    at = next(i for i in range(data.num_samples) if "0_ann_5" in data.sets.train.listing.paths[i])
    torch.testing.assert_close(got[5], bank.features[bank.index == at][0], rtol=1e-4, atol=1e-5)
    alone = features(encoder, torch.from_numpy(waves[0])[None] / 32768)
    torch.testing.assert_close(alone[0], got[0], rtol=1e-4, atol=1e-5)


def test_a_run_on_text_takes_sentences(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    some = sentences()
    lines = [f"{a},{some[i - 1]},{i % 6}" for i, a in enumerate(some)]
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}.csv").write_text("\n".join(lines) + "\n")
    encoder, data = entry("simcse/stsb_small_40ep", tmp_path, tmp_path, "--data.batch_size=4")
    loaders = data.similarity_dataloaders()["dev"]
    wanted = extract(encoder, loaders.bank, loaders, "forward", "cpu").features
    asked = [text for i, a in enumerate(some) for text in (a, some[i - 1])]
    torch.testing.assert_close(features(encoder, asked), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features(encoder, asked[0]), wanted[:1], rtol=1e-4, atol=1e-5)
    for wrong in ([], [1], 3, None):
        with pytest.raises(ValueError, match=r"sentences must be .* got "):
            encoder.preprocess(wrong)
    (tmp_path / "train.csv").write_text("\n".join([*lines, "a cat,a zebra,2"]) + "\n")
    folder, about = tmp_path / "run" / "version_0", ("a test", "CC0-1.0", tmp_path / "zoo")
    with pytest.raises(ValueError, match="use the training text of the run"):
        add_run(folder, "other", *about, checkpoint=folder / "old.ckpt")
    card = add_run(folder, "other", *about)  # the vocabulary is the checkpoint's
    assert card.features == encoder.card.features
    with pytest.raises(ValueError, match=r"\['size'\] must be omitted without images, got text"):
        add_run(folder, "third", *about, view={"size": 8})


@pytest.mark.parametrize("standardize", ["true", "false"])
def test_a_run_on_arrays_takes_sequences(standardize: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values = (5 + 3 * draw.standard_normal((12, 80, 3))).astype(np.float32)
    for name in ("train", "val"):
        np.savez(tmp_path / f"{name}.npz", values=values, label=np.arange(12) % 2)
    small = ["--data.batch_size=4", "--model.num_negatives=4"]
    small.append(f"--data.standardize={standardize}")
    encoder, data = entry("cpc/arrays_small_30ep", tmp_path, tmp_path, *small)
    loaders = data.eval_dataloaders()
    wanted = extract(encoder, loaders.bank, loaders, "forward", "cpu").features
    torch.testing.assert_close(
        features(encoder, torch.from_numpy(values)), wanted, rtol=1e-4, atol=1e-5
    )


# -- inputs


def test_waveforms_of_both_kinds_and_their_central_windows() -> None:
    wave = torch.arange(-5, 5, dtype=torch.int16)[None] * 3000
    whole = WaveformInput(Waveform(0.1, 2.0), 8000)
    torch.testing.assert_close(whole(wave), (wave / 32768 - 0.1) / 2)
    torch.testing.assert_close(whole(wave / 32768), whole(wave))
    short = WaveformInput(Waveform(), 8000, window=4)
    assert torch.equal(short(wave), wave[:, 3:7] / 32768)
    padded = short([wave[0, :2], wave[0]])
    assert torch.equal(padded[0], torch.tensor([0.0, wave[0, 0], wave[0, 1], 0]) / 32768)
    assert torch.equal(padded[1], wave[0, 3:7] / 32768)
    mel = WaveformInput(LogMel(8000, bands=4, window=64, hop=32), 8000)
    several = mel([torch.zeros(100), torch.zeros(200)])
    assert isinstance(several, Padded)
    assert several.values.shape[2] == 4
    for wrong in (torch.zeros(2, 2, 2), [torch.zeros(2, 2)], []):
        with pytest.raises(ValueError, match=r"waveforms must be .*, got"):
            whole(wrong)


def test_sequences_are_standardized_and_padding_stays_zero() -> None:
    given = FrameInput([1.0, 2.0], [2.0, 4.0])
    x = torch.randn(2, 3, 2)
    wanted = (x - torch.tensor([1.0, 2.0])) / torch.tensor([2.0, 4.0])
    torch.testing.assert_close(given(x), wanted)
    padded = given(Padded(x, torch.tensor([3, 1])))
    assert isinstance(padded, Padded)
    torch.testing.assert_close(padded.values[0], wanted[0])
    assert not padded.values[1, 1:].any()


# -- cards


def a_card(**changes: Any) -> Card:
    return card_of({**SOUND, **changes}, "here")


SOUND: dict[str, Any] = {
    "name": "tiny",
    "file": "tiny.safetensors",
    "method": "sslzoo.methods.CPC",
    "backbone": {"class_path": "sslzoo.backbones.SequenceEncoder"},
    "num_features": 4,
    "data": "nothing",
    "preprocessing": {"kind": "waveform", "rate": 8, "transform": {"class_path": "x.Y"}},
    "license": {"code": "MIT", "weights": "MIT"},
}


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        ({"kind": "smell"}, "must be one of .*'waveform'.* got 'smell'"),
        ({"kind": "waveform", "rate": 8}, "'rate', 'transform'.* got"),
        (
            {"size": 8, "channels": 0},
            "channels of the preprocessing must be an integer above 0, got 0",
        ),
        ({"size": True}, "size of the preprocessing must be .*, got True"),
        ({"size": 8, "mean": [0.5], "std": [0.5, 0.5]}, "must have 1 numbers, one per channel"),
        ({"size": 8, "mean": [0.5], "std": [0.5], "channels": 4}, "must have 4 numbers"),
        (
            {"size": 8, "mean": [float("nan")]},
            "mean of the preprocessing must be a list of numbers",
        ),
        ({"size": 8, "mean": [0.5]}, "mean and std must be given together"),
        ({"size": 8, "resize": 7}, "resize must be at least 8, got 7"),
        ({"size": 8, "space": "xyz"}, "got 'xyz'"),
        ({"size": 8, "interpolation": "nearest"}, "got 'nearest'"),
        (
            {"kind": "waveform", "rate": 8, "transform": {"class": 1}},
            "transform .* must be a class_path",
        ),
        ({"kind": "text", "max_length": "long"}, "max_length.* got"),
        ({"kind": "frames", "mean": [0.0], "std": [1.0], "size": 3}, "'mean', 'std'.* got"),
    ],
)
def test_a_card_says_which_preprocessing_it_wants(preprocessing: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_card(preprocessing=preprocessing).preprocess()


def test_what_the_card_names_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'x\.Y', which is not a class of"):
        preprocessor(a_card().preprocessing)
    path = tmp_path / "net.safetensors"
    save(torch.nn.Linear(2, 2), path)
    text = a_card(preprocessing={"kind": "text", "max_length": 8})
    with pytest.raises(ValueError, match="must have a tokenizer in its metadata"):
        preprocessor(text.preprocessing, tokenizer_json(path))
    pytest.importorskip("tokenizers")
    save(torch.nn.Linear(2, 2), path, metadata={"tokenizer": "{}"})
    with pytest.raises(ValueError, match="must be JSON of `tokenizers`"):
        preprocessor(text.preprocessing, tokenizer_json(path))
    with pytest.raises(ValueError, match="must be an encoder of images, got one of text"):
        text.preprocess()


def test_a_card_from_elsewhere_names_transforms_of_ours_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))
    backbone = {
        "class_path": "sslzoo.backbones.SequenceEncoder",
        "init_args": {
            "encoder": {"class_path": "sslzoo.backbones.FrameMLP", "init_args": {"in_features": 2}},
            "context": {
                "class_path": "sslzoo.heads.Recurrent",
                "init_args": {"in_features": 64, "out_features": 4},
            },
        },
    }
    net = SequenceEncoder(FrameMLP(2), Recurrent(64, 4))
    frames = {"kind": "frames", "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    save_with_card(net, a_card(backbone=backbone, preprocessing=frames), tmp_path)
    beside = tmp_path / "tiny.json"
    raw = json.loads(beside.read_text())
    address = (tmp_path / "tiny.safetensors").as_uri()
    assert sslzoo.load(address).preprocess is not None  # type: ignore[union-attr]
    evil = {"kind": "waveform", "rate": 8, "transform": {"class_path": "os.system"}}
    beside.write_text(json.dumps({**raw, "preprocessing": evil}))
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"got 'os\.system'"):
        sslzoo.load(address)


def test_a_tokenizer_survives_the_metadata() -> None:
    pytest.importorskip("tokenizers")
    one = WordPiece(60)
    one.prepare(sentences())
    two = WordPiece.from_json(one.to_json())
    assert (two.digest, two.special) == (one.digest, one.special)
    tokens = TextInput(two, 5)(["two dogs run over the grass", "a"])
    assert tokens.lengths.tolist() == [5, 3]
