"""Alignments: tables and .PHN files, the frames that they label, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslzoo.backbones import (
    AudioNTT,
    ConvFrames,
    SequenceEncoder,
    SpeechEncoder,
    SpeechTransformer,
    WaveEncoder,
)
from sslzoo.data import AudioFolder, WaveformInput
from sslzoo.eval.frames import extract_frames, frame_centers, segment_labels
from sslzoo.heads import Recurrent
from sslzoo.transforms import LogMelImage, Waveform
from tests.data.audio.test_datamodule import ramp, write
from tests.data.audio.test_speech import libri, librispeech

pytest.importorskip("soundfile")
pytestmark = pytest.mark.filterwarnings("ignore:phones should reach the end")  # few have all phones

ROWS = ["a_0,0.1,0.2,t", "a_0,0,0.1,k", "a_1.wav,0.02,0.3,k", "b_0,0,0.05,k", "b_1,0,.4,s"]


def clips(root: Path, rate: int = 8000, lengths: tuple[float, ...] = (0.2, 0.3, 0.25, 0.4)) -> Path:
    """Four recordings of so many seconds."""
    for name, length in zip(("a_0", "a_1", "b_0", "b_1"), lengths, strict=True):
        write(root / f"{name}.wav", ramp(round(length * rate)), rate)
    return root


def table(root: Path, rows: list[str], name: str = "phones.alignments.csv", head: str = "") -> str:
    text = "\n".join([head or "clip,start,end,phone", *rows])
    (root / name).write_text(text if name.endswith("csv") else text.replace(",", "\t"))
    return name


def folder(root: Path, alignments: str, **changes: Any) -> AudioFolder:
    given: dict[str, Any] = {"window": 400, "batch_size": 2, "rate": 8000}
    given |= {"pattern": "{word}_{n}.wav", "query": {"n": [1]}, "alignments": alignments}
    data = AudioFolder(str(root), Waveform(), **{**given, **changes})
    data.setup("fit")
    return data


def encoder(norm_first: bool = False) -> SpeechEncoder:
    """A net whose frames see 45 samples and are 20 apart."""
    torch.manual_seed(0)
    frames = ConvFrames([8, 8], [10, 8], [5, 4])
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0}
    transformer = SpeechTransformer(
        *(8, 2, 2), norm_first=norm_first, position_kernel=4, position_groups=2, **rates
    )
    return SpeechEncoder(frames, transformer, rate=8000).eval()


@pytest.mark.parametrize("name", ["phones.alignments.csv", "phones.alignments.tsv"])
def test_a_table_labels_frames_by_their_centers(tmp_path: Path, name: str) -> None:
    data = folder(clips(tmp_path), table(tmp_path, ROWS, name))
    assert (data.classes, data.num_classes) == (["k", "s", "t"], 3)
    train = data.sets.train.listing.frame_labels
    assert [own.tolist() for own in train] == [[[0, 800, 0], [800, 1600, 2]], [[0, 400, 0]]]
    loaders = data.eval_dataloaders()
    found = extract_frames(encoder(), loaders.bank, loaders, "cpu")
    # Frame 39 is centered at sample 802, frame 19 at 402.
    assert found.label[found.index == 0].tolist() == [0] * 39 + [2] * 39
    assert found.label[found.index == 1].tolist() == [0] * 19  # the rest has no phone
    every = extract_frames(encoder(), loaders.bank, loaders, "cpu", unlabeled=True)
    assert every.label[every.index == 1].tolist() == [0] * 19 + [-1] * 79
    short = folder(tmp_path, name, short="skip", window=1900, batch_size=1)
    assert [Path(p).stem for p in short.sets.train.paths()] == ["b_0"]
    assert short.classes == ["k", "s"]  # t is in a_0 alone, which is not read
    training = next(iter(data.train_dataloader()))
    assert training.views[0].shape == (2, 400)


def test_phn_files_are_in_samples_of_their_recording(tmp_path: Path) -> None:
    clips(tmp_path, 16000)
    for path in tmp_path.glob("*.wav"):
        suffix = ".PHN" if path.stem == "a_0" else ".phn"
        path.with_suffix(suffix).write_text("0 1600 h#\n1600 3200 ah n\n")
    data = folder(tmp_path, "phn")
    assert data.classes == ["ah n", "h#"]
    for own in data.sets.train.listing.frame_labels:
        assert own.tolist() == [[0, 800, 1], [800, 1600, 0]]


LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.2
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.2
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.2
            text = "say ""0 1"" !"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 0.2
        points: size = 1
        points [1]:
            number = 0.1
            mark = "x"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.2
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.05
            text = ""
        intervals [2]:
            xmin = 0.05
            xmax = 0.1
            text = "ah0"
        intervals [3]:
            xmin = 1e-1
            xmax = 0.2
            text = "h#"
"""
SHORT = """File type = "ooTextFile short"
"TextGrid"

0
0.2
<exists>
1
"IntervalTier"
"A - phones"
0
0.2
2 ! a comment, with 7 and "text"
0.05
0.1
"ah0"
0.1
0.2
"h#"
"""


def test_text_grids_are_read_in_both_forms_and_any_encoding(tmp_path: Path) -> None:
    grids = {"a_0": LONG, "a_1": SHORT, "b_0": LONG, "b_1": SHORT}
    clips(tmp_path, lengths=(0.2, 0.28, 0.25, 0.2))
    for i, (name, text) in enumerate(grids.items()):
        file = tmp_path / f"{name}.{'TextGrid' if i else 'textgrid'}"
        file.write_text(text, encoding="utf-16" if i == 1 else "utf-8")
    data = folder(tmp_path, "textgrid")
    assert data.classes == ["ah0", "h#"]
    for own in data.sets.train.listing.frame_labels:
        assert own.tolist() == [[400, 800, 0], [800, 1600, 1]]
    with pytest.raises(
        ValueError, match=r"must have one tier 'words', got \['A - phones'\] in .*a_1"
    ):
        folder(tmp_path, "TextGrid:words")
    (tmp_path / "b_1.TextGrid").write_text(LONG)
    (tmp_path / "a_1.TextGrid").write_text(LONG)
    assert folder(tmp_path, "textgrid:words").classes == ['say "0 1" !']
    with pytest.raises(ValueError, match="tier 'clicks' must have intervals, got points"):
        folder(tmp_path, "textgrid:clicks")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LONG[:-30], "must be whole, got one that ends too early: .*a_0.TextGrid"),
        (LONG.replace("TextGrid", "PitchTier"), "first texts must be ooTextFile and TextGrid"),
        (LONG.replace("<exists>", "<absent>"), r"must have one tier 'phones', got \[\]"),
        (LONG.replace("size = 3", "size = x", 1), "must be as Praat writes it, got .*a_0.TextGrid"),
    ],
)
def test_broken_text_grids_are_refused(tmp_path: Path, text: str, message: str) -> None:
    clips(tmp_path)
    for name in ("a_0", "a_1", "b_0", "b_1"):
        (tmp_path / f"{name}.TextGrid").write_text(text if name == "a_0" else LONG)
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, "textgrid")


@pytest.mark.parametrize("end", ["0.5", "0.05", "200"])
def test_text_grids_of_another_duration_are_refused(tmp_path: Path, end: str) -> None:
    clips(tmp_path, lengths=(0.2,) * 4)
    for name in ("a_0", "a_1", "b_0", "b_1"):
        text = LONG.replace("xmax = 0.2", f"xmax = {end}", 1) if name == "a_1" else LONG
        (tmp_path / f"{name}.TextGrid").write_text(text)
    with pytest.raises(ValueError, match=r"its recording's 0\.2 s, got .* s in .*a_1\.TextGrid"):
        folder(tmp_path, "textgrid")


@pytest.mark.filterwarnings("default:phones should reach the end")
def test_recordings_without_phones_in_their_second_half_are_counted(tmp_path: Path) -> None:
    told = r"got 1 of 4 recordings .*b_0\.wav with 0\.05 of 0\.25 s; is this the right clip"
    with pytest.warns(UserWarning, match=told):
        folder(clips(tmp_path), table(tmp_path, ROWS))
    for path in tmp_path.glob("*.wav"):  # times of 8 kHz beside recordings of 16 kHz
        path.with_suffix(".phn").write_text("0 600 k\n")
    with pytest.warns(UserWarning, match="got 4 of 4 recordings"):
        folder(clips(tmp_path, 16000), "phn")


def test_librispeech_is_aligned_by_utterance(tmp_path: Path) -> None:
    root = librispeech(tmp_path)
    names = sorted(path.stem for path in root.rglob("*.flac"))
    table(root, [f"{name},0,0.05,{i % 2}" for i, name in enumerate(names)])
    data = libri(root, alignments="phones.alignments.csv", val_fraction=1 / 3)
    assert data.classes == ["0", "1"]
    assert data.sets.query.label(torch.tensor([0, 1])).shape == (2, 1, 3)
    with pytest.raises(ValueError, match="phones must be None with alignments, got 'a'"):
        libri(root, alignments="phones.alignments.csv", phones="a")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a_0,0,0.3,k"], r"within the recording's 0.2 s, got 'k' from 0 to 0.3 s in .*a_0"),
        (["a_0,0.2,0.21,k"], "within the recording's 0.2 s"),
        (["a_0,0,0.1,k", "a_0,0.05,0.2,t"], "must not overlap, got 't' from 0.05 to 0.2 s after"),
        (["a_0,0.1,0.1,k"], "begin at 0 s or later and end after that, got 'k' from 0.1 to 0.1"),
        (["a_0,-1,0.1,k"], "begin at 0 s or later"),
        (["a_0,nan,0.1,k"], "begin at 0 s or later"),
        (["c_7,0,0.1,k"], r"clip must be a recording below .*, got 'c_7' \(line 2 of"),
        (["a_0,0,x,k"], r"must be numbers of seconds, got \['0', 'x'\] \(line 2"),
        (["a_0,0,0.1"], r"must have a phone, got none \(line 2"),
        ([], "every recording must have aligned phones, got none for 1 of 4, .* is .*a_0"),
    ],
)
def test_bad_alignments_are_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    others = [row for row in ROWS if not row.startswith("a_0")]
    with pytest.raises(ValueError, match=message):
        folder(clips(tmp_path), table(tmp_path, [*rows, *others]))


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    clips(tmp_path)
    with pytest.raises(ValueError, match=r"a \.csv or \.tsv file that exists.*got 'none.csv'"):
        folder(tmp_path, "none.csv")
    with pytest.raises(ValueError, match=r"must have the columns .* got .*'word'"):
        folder(tmp_path, table(tmp_path, [], head="clip,start,end,word"))
    with pytest.raises(ValueError, match=r"must have a \.PHN file beside it, got none for"):
        folder(tmp_path, "phn")
    with pytest.raises(ValueError, match=r"eval_window must be None with alignments.*got 400"):
        folder(tmp_path, table(tmp_path, ROWS), eval_window=400)
    for name in ("x", "y"):
        write(tmp_path / name / "c_1.wav", ramp(1600))
    layout: dict[str, Any] = {"pattern": "{speaker}/{word}_{n}.wav", "query": {"n": [1]}}
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    with pytest.raises(ValueError, match="got 'c_1', which is the name of 2"):
        folder(tmp_path, table(tmp_path, ["c_1,0,0.1,k"]), **{**layout, "query": {"speaker": "x"}})


def test_whole_files_are_aligned_whatever_window_the_encoder_was_trained_with(
    tmp_path: Path,
) -> None:
    data = folder(clips(tmp_path), table(tmp_path, ROWS))
    data.take_input(WaveformInput(Waveform(), 8000, window=400))
    assert data.eval_window is None
    loaders = data.eval_dataloaders()
    found = extract_frames(encoder(), loaders.bank, loaders, "cpu")
    assert found.label[found.index == 0].tolist() == [0] * 39 + [2] * 39
    images = LogMelImage(8000, 16, 64, 16, high=4000)
    told = "need frames of whole files, but LogMelImage makes images of windows"
    with pytest.raises(ValueError, match=told):
        data.take_input(WaveformInput(images, 8000, window=400))
    with pytest.raises(ValueError, match=told):
        AudioFolder(str(tmp_path), images, rate=8000, alignments="phones.alignments.csv")


@pytest.mark.parametrize("kind", ["speech", "wave"])
def test_centers_are_those_of_what_a_frame_sees(kind: str) -> None:
    net: nn.Module = encoder()
    convs: Any = net.frames
    if kind == "wave":
        convs = WaveEncoder(4, [10, 8, 4], [5, 4, 2], [3, 2, 1])
        net = SequenceEncoder(convs, Recurrent(4, 5))
    else:  # without the group norm, by which a frame sees everything
        convs.norms[0] = nn.Identity()
    wave = torch.rand(1, 900, requires_grad=True)
    frames = convs(wave)
    centers = frame_centers(net, frames.shape[1], 900)
    for position in (3, 5, 8):
        (seen,) = torch.autograd.grad(frames[0, position].square().sum(), wave, retain_graph=True)
        at = seen[0].nonzero()[:, 0].double()
        assert centers[position] == (at.min() + at.max()) / 2


def test_frames_of_other_encoders_are_evenly_spaced() -> None:
    assert frame_centers(AudioNTT(8, 80), 4, 8).tolist() == [0.5, 2.5, 4.5, 6.5]
    segments = torch.tensor([[1, 3, 7], [4, 7, 5], [-1, -1, -1]])
    assert segment_labels(segments, torch.tensor([0.5, 2.5, 3.0, 4.5, 6.5, 7.0])).tolist() == [
        *(-1, 7, -1, 5, 5, -1)
    ]
