"""LibriSpeech and Speech Commands: tiny trees in the official layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslzoo.backbones import SequenceEncoder, WaveEncoder
from sslzoo.data import LibriSpeech, SpeechCommands
from sslzoo.eval.frames import extract_frames
from sslzoo.heads import Recurrent
from sslzoo.transforms import Waveform
from tests.data.audio.test_datamodule import ramp, write

pytest.importorskip("soundfile")


def librispeech(root: Path) -> Path:
    """Three speakers with two chapters of three utterances each."""
    for speaker in (19, 26, 103):
        for chapter in (198, 1240):
            for n in range(3):
                name = f"{speaker}-{chapter}-{n:04d}.flac"
                path = root / "train-clean-100" / str(speaker) / str(chapter) / name
                write(path, ramp(800 + 160 * n), 16000)
            (path.parent / f"{speaker}-{chapter}.trans.txt").write_text("words")
    return root


def libri(root: Path, **changes: Any) -> LibriSpeech:
    given = {"transform": Waveform(), "window": 320, "batch_size": 4, "eval_batch_size": 3}
    data = LibriSpeech(str(root), **{**given, **changes})
    data.setup("fit")
    return data


def test_librispeech_is_labeled_by_speaker(tmp_path: Path) -> None:
    data = libri(librispeech(tmp_path))
    assert (data.num_samples, data.num_classes, data.sets.query) == (18, 3, None)
    assert data.classes == ["103", "19", "26"]
    assert data.sets.train.labels.bincount().tolist() == [6, 6, 6]
    assert len(libri(tmp_path, val_fraction=1 / 3).sets.query) == 6
    grouped = libri(tmp_path, batches="same_group")
    for batch in grouped.train_dataloader():
        assert len(batch.label.unique()) == 1


def test_librispeech_takes_cpcs_split_files(tmp_path: Path) -> None:
    librispeech(tmp_path)
    train, test = tmp_path / "train_split.txt", tmp_path / "test_split.txt"
    train.write_text("103-1240-0000\n26-198-0002\n19-198-0001\n19-1240-0001\n")
    test.write_text("26-198-0001\n")
    data = libri(tmp_path, train_split=str(train), test_split=str(test))
    assert data.num_samples == 4
    assert [Path(p).stem for p in data.sets.query.listing.paths] == ["26-198-0001"]
    test.write_text("26-198-0009\n")
    with pytest.raises(ValueError, match=r"lacks 1: \['26-198-0009'\]"):
        libri(tmp_path, test_split=str(test))


def test_phones_go_with_the_last_frames(tmp_path: Path) -> None:
    librispeech(tmp_path)
    phones = tmp_path / "converted_aligned_phones.txt"
    lines = {"19-198-0000": [1, 2, 3, 4], "26-198-0002": [5, 6, 7, 8, 40, 0]}
    phones.write_text("".join(f"{k} {' '.join(map(str, v))}\n" for k, v in lines.items()))
    data = libri(tmp_path, phones=str(phones), batch_size=2)
    assert (data.num_samples, data.num_classes) == (2, 41)
    loaders = data.eval_dataloaders()
    torch.manual_seed(0)
    model = SequenceEncoder(WaveEncoder(4), Recurrent(4, 5))
    found = extract_frames(model, loaders.bank, loaders, "cpu")
    assert found.label.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 40, 0]
    assert found.index.tolist() == [0] * 4 + [1] * 6
    wave = torch.from_numpy(ramp(1120).astype(np.float32))[None] / 32768
    alone = model.forward_frames(wave).values[0]
    assert len(alone) == 7  # one more than there are labels
    torch.testing.assert_close(found.features[4:], alone[1:])
    speakers = libri(tmp_path).eval_dataloaders()
    with pytest.raises(ValueError, match=r"one per frame, or segments .*, got \(3,\)"):
        extract_frames(model, speakers.bank, speakers, "cpu")
    with pytest.raises(ValueError, match="must have forward_frames, got Linear"):
        extract_frames(torch.nn.Linear(2, 2), loaders.bank, loaders, "cpu")


def test_what_librispeech_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"root with the subset must be a folder.*clean-100"):
        libri(tmp_path)
    (tmp_path / "train-clean-100").mkdir()
    with pytest.raises(ValueError, match="got none"):
        libri(tmp_path)
    librispeech(tmp_path)
    with pytest.raises(ValueError, match="must exist, got 'nowhere'"):
        libri(tmp_path, phones="nowhere")
    (tmp_path / "other.txt").write_text("1-2-3 4\n")
    with pytest.raises(ValueError, match="18 utterances, got none"):
        libri(tmp_path, phones=str(tmp_path / "other.txt"))
    with pytest.raises(ValueError, match="val_fraction must be None with test_split"):
        libri(tmp_path, test_split="a", val_fraction=0.1)


def commands(root: Path) -> Path:
    for word in ("bed", "cat"):
        for speaker in ("004ae714", "0a7c2a8d", "1b4c9b89"):
            for n in range(2):
                write(root / word / f"{speaker}_nohash_{n}.wav", ramp(600), 16000)
    write(root / "_background_noise_" / "pink_noise.wav", ramp(900), 16000)
    (root / "validation_list.txt").write_text("bed/0a7c2a8d_nohash_0.wav\n")
    (root / "testing_list.txt").write_text(
        "bed/1b4c9b89_nohash_0.wav\ncat/1b4c9b89_nohash_0.wav\ncat/1b4c9b89_nohash_1.wav\n"
    )
    return root


def test_speech_commands_follows_the_official_lists(tmp_path: Path) -> None:
    commands(tmp_path)
    for query, count in (("test", 3), ("validation", 1)):
        data = SpeechCommands(str(tmp_path), Waveform(), query, batch_size=4)  # type: ignore[arg-type]
        data.setup("fit")
        assert (data.num_samples, len(data.sets.query)) == (8, count)
        assert data.classes == ["bed", "cat"]
        (batch, _) = data.train_dataloader()
        assert batch.views[0].shape == (4, 16000)


def test_what_speech_commands_lacks_is_named(tmp_path: Path) -> None:
    commands(tmp_path)
    with pytest.raises(ValueError, match="got 'train'"):
        SpeechCommands(str(tmp_path), Waveform(), "train")  # type: ignore[arg-type]
    (tmp_path / "testing_list.txt").write_text("")
    with pytest.raises(ValueError, match=r"files of testing_list\.txt, got 11 and 0"):
        SpeechCommands(str(tmp_path), Waveform()).setup("fit")
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(ValueError, match=r"but lacks \['testing_list\.txt'\]"):
        SpeechCommands(str(tmp_path), Waveform()).setup("fit")
