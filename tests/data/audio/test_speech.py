"""LibriSpeech and Speech Commands: tiny trees in the official layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslzoo.backbones import (
    ConvFrames,
    SequenceEncoder,
    SpeechEncoder,
    SpeechTransformer,
    WaveEncoder,
)
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
    told = r"18 utterances, got 16 without phones \(103-1240-0000, \.\.\.\); they are left out"
    with pytest.warns(UserWarning, match=told):
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


@pytest.mark.parametrize("shift", [-4, 0, 4])
def test_phones_go_with_the_frames_of_an_encoder_of_another_rate(
    tmp_path: Path, shift: int
) -> None:
    """A net of 20 ms: each frame has the phone at its center, not one of the last half."""
    path = tmp_path / "train-clean-100" / "19" / "198" / "19-198-0000.flac"
    write(path, ramp(16000), 16000)
    want = 100 + shift
    (tmp_path / "phones.txt").write_text(f"19-198-0000 {' '.join(map(str, range(want)))}\n")
    data = libri(tmp_path, phones=str(tmp_path / "phones.txt"), batch_size=1)
    loaders = data.eval_dataloaders()
    convs = ConvFrames((4, 4), (20, 20), (16, 20))  # 324 samples, 320 apart
    transformer = SpeechTransformer(4, 1, 2, 8, position_kernel=4, position_groups=2)
    net = SpeechEncoder(convs, transformer)
    found = extract_frames(net, loaders.bank, loaders, "cpu")
    assert len(found.label) == 49
    for frame, phone in enumerate(found.label.tolist()):
        assert abs((320 * frame + 162) - (phone + 0.5) * 16000 / want) <= 80 * 100 / want + 1


PHONES = {f"{speaker}-{chapter}-{n:04d}": 5 + n for speaker in (19, 26, 103)
          for chapter in (198, 1240) for n in range(3)}  # fmt: skip


def phone_file(root: Path, counts: dict[str, int]) -> str:
    lines = [f"{name} {' '.join(['1'] * count)}\n" for name, count in counts.items()]
    (root / "phones.txt").write_text("".join(lines))
    return str(root / "phones.txt")


def test_phones_of_another_clip_are_refused_or_left_out(tmp_path: Path) -> None:
    librispeech(tmp_path)
    wrong = {"19-198-0001": 60, "103-198-0000": 500}
    given = phone_file(tmp_path, PHONES | wrong)
    told = (
        r"got 2 of 18 \(train\) of another duration, the first is 5\.00 s of labels for 0\.05 s of "
    )
    with pytest.raises(ValueError, match=told + r".*103-198-0000\.flac; set on_broken: skip"):
        libri(tmp_path, phones=given)
    with pytest.warns(UserWarning, match=told + r".*; all of them are left out"):
        data = libri(tmp_path, phones=given, on_broken="skip")
    assert len(data.sets.train) == len(data.sets.train.listing.frame_labels) == 16
    assert all(len(own) < 9 for own in data.sets.train.listing.frame_labels)
    every = phone_file(tmp_path, dict.fromkeys(PHONES, 99))
    with pytest.raises(ValueError, match=r"got 18 of 18 \(train\)"):
        libri(tmp_path, phones=every, on_broken="skip")


def test_phones_of_utterances_that_the_subset_lacks_are_counted(tmp_path: Path) -> None:
    librispeech(tmp_path)
    given = phone_file(tmp_path, PHONES | {"7-1-0000": 5, "7-1-0001": 5})
    with pytest.warns(UserWarning, match=r"got 2 that the subset lacks \(7-1-0000, \.\.\.\)"):
        assert libri(tmp_path, phones=given).num_samples == 18


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("19-198-0000 1 2", r"must have one line, got '19-198-0000' again \(line 19"),
        ("1-1-1 1 x", r"numbers from 0 to 32767, got '1-1-1 1 x' \(line 19"),
        ("1-1-1 1 -1", "numbers from 0 to 32767, got '1-1-1 1 -1'"),
        ("1-1-1 0.5", "numbers from 0 to 32767"),
        ("1-1-1 40000", "numbers from 0 to 32767"),
        ("1-1-1", "an utterance and its phones"),
    ],
)
def test_lines_that_are_no_phones_are_refused(tmp_path: Path, line: str, told: str) -> None:
    librispeech(tmp_path)
    given = phone_file(tmp_path, PHONES)
    with open(given, "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=told):
        libri(tmp_path, phones=given)
    with pytest.raises(ValueError, match=r"eval_window must be None with phones, .*, got 400"):
        libri(tmp_path, phones=given, eval_window=400)


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
