"""Clips that are shorter than a frame: the same in every batch, and known before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from sslzoo.backbones import AudioNTT, FrameMLP, SequenceEncoder, WaveEncoder
from sslzoo.backbones.speech import ConvFrames, SpeechEncoder, SpeechTransformer
from sslzoo.batch import Padded
from sslzoo.callbacks import OnlineKNN
from sslzoo.data import AudioFolder, FrameInput, SequenceArrays, WaveformInput
from sslzoo.eval.features import extract
from sslzoo.eval.frames import extract_frames
from sslzoo.heads import LinearSteps, Recurrent
from sslzoo.methods import CPC
from sslzoo.runs import embed as command
from sslzoo.runs.evaluation import as_known_to
from sslzoo.runs.protocols import Subject
from sslzoo.runs.protocols.speech import LayerSumOfClips
from sslzoo.transforms import LogMel, LogMelImage, Waveform
from tests.no_sync import DEVICE, syncs

soundfile = pytest.importorskip("soundfile")
pytestmark = [  # Lightning's: it reads a deprecated attribute of torch's, and the runs are short
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*(many workers|val_dataloader)"),
]


def wave_encoder(norm: Any = "none", pool: Any = "mean") -> SequenceEncoder:
    encoder = WaveEncoder(6, (10, 8), (5, 4), (2, 2), norm)
    return SequenceEncoder(encoder, Recurrent(6, 5), pool)


def speech(norm: Any = "group", normalize: bool = False) -> SpeechEncoder:
    transformer = SpeechTransformer(8, 2, 2, 12, position_kernel=6, position_groups=2)
    return SpeechEncoder(ConvFrames((4, 6), (10, 4), (5, 2), norm), transformer, normalize)


ENCODERS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and the shortest clip
    "CPC": (wave_encoder, 21),
    "CPC, instance norm, last": (lambda: wave_encoder("instance", "last"), 21),
    "wav2vec 2.0 and HuBERT": (speech, 25),
    "data2vec": (lambda: speech("layer", True), 25),
}
METHODS = ("forward", "forward_frames", "forward_layers")


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_clip_without_a_frame_is_refused_in_every_batch(name: str) -> None:
    torch.manual_seed(0)
    make, least = ENCODERS[name]
    encoder: Any = make().eval()
    waves = torch.randn(3, 90)

    def padded(*lengths: int) -> Padded:
        inside = torch.arange(90) < torch.tensor(lengths)[:, None]
        return Padded(waves[: len(lengths)] * inside, torch.tensor(lengths))

    wanted = encoder(waves[:1, :least])[0]
    for view in (padded(least), padded(least, 90), padded(least, least), padded(least, 30, 90)):
        torch.testing.assert_close(encoder(view)[0], wanted)
    short = least - 1
    for lengths in ((short,), (short, short), (90, short), (90, short, 5)):
        first = lengths.index(short)
        told = rf"got {sum(n < least for n in lengths)} of .* first \(row {first}\) with {short}"
        for method in METHODS:
            if hasattr(encoder, method):
                with pytest.raises(ValueError, match=told):
                    getattr(encoder, method)(padded(*lengths))
    with pytest.raises(ValueError, match=rf"at least {least} "):
        encoder(waves[:1, :short])


@pytest.mark.parametrize("name", [n for n in ENCODERS if "CPC" not in n])  # a GRU needs cuDNN
def test_training_on_an_accelerator_does_not_wait_for_the_lengths(name: str) -> None:
    def step(encoder: nn.Module) -> Tensor:
        lengths = torch.zeros(3, dtype=torch.int64, device=DEVICE)
        loss: Tensor = encoder(Padded(torch.zeros(3, 90, device=DEVICE), lengths)).sum()
        return loss

    assert syncs(step, make=ENCODERS[name][0]) == []


def test_a_spectrogram_of_less_than_a_frame_is_refused() -> None:
    encoder = AudioNTT(16, 32, 2).eval()
    assert encoder(torch.randn(1, 1, 16, 4)).shape == (1, 32)
    with pytest.raises(ValueError, match=r"at least 4 frames for 2 blocks, got \(1, 1, 16, 3\)"):
        encoder(torch.randn(1, 1, 16, 3))


@pytest.mark.parametrize("length", [3, 20, 26])
def test_a_spectrogram_is_the_same_alone_and_padded(length: int) -> None:
    mel = LogMel(8000, 8, window=20, hop=5)
    wave = torch.rand(1, length) - 0.5
    alone = mel.evaluation(wave)
    for size in (length, 60):
        given = Padded(nn.functional.pad(wave, (0, size - length)), torch.tensor([length]))
        view: Any = mel.evaluation(given)
        assert view.lengths.tolist() == mel.num_frames(given.lengths).tolist() == [alone.shape[1]]
        torch.testing.assert_close(view.values[:, : alone.shape[1]], alone)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six clips of two classes for training and four to score, two of which have no frame."""
    lengths = {"train": (200, 120, 20, 200, 300, 150), "val": (200, 120, 9, 130)}
    for split, sizes in lengths.items():
        for n, length in enumerate(sizes):
            path = tmp_path / split / "ab"[n % 2] / f"{n}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.sin(np.arange(1, length + 1) * (0.1 + n)) / 2, 8000)
    return tmp_path


def folder(root: Path, transform: Any = None, **changes: Any) -> AudioFolder:
    given: Any = {"window": 100, "batch_size": 2, "rate": 8000, "eval_batch_size": 3, "seed": 0}
    return AudioFolder(str(root), transform or Waveform(), **{**given, **changes})


TOLD = r"got 1 of 6 \(train\) and 1 of 4 \(query\) that are not, the first is .*2\.wav with 20 samp"


def cpc(backbone: nn.Module) -> CPC:
    return CPC(backbone, LinearSteps(5, 6, 2), optimizer=lambda p: torch.optim.SGD(p, 0.01))


@pytest.mark.parametrize("eval_batch_size", [1, 3, 20])
def test_clips_without_a_frame_are_counted_before_any_is_embedded(
    root: Path, eval_batch_size: int
) -> None:
    data = folder(root, eval_batch_size=eval_batch_size)
    data.setup("validate")
    loaders = data.eval_dataloaders()
    for of in (wave_encoder(), speech()):
        steps: list[Any] = [
            lambda of=of: extract(of, loaders.bank, loaders),
            lambda of=of: extract_frames(of, loaders.bank, loaders, "cpu"),
            lambda of=of: LayerSumOfClips()(Subject(of, torch.device("cpu"), data)),
        ]
        for step in steps:
            with pytest.raises(ValueError, match=TOLD + r".*; set on_broken: skip to leave"):
                step()


def trainer(root: Path, *callbacks: Any) -> Trainer:
    return Trainer(
        *(), max_steps=2, accelerator="cpu", default_root_dir=root, callbacks=list(callbacks),
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def test_a_run_that_evaluates_clips_without_a_frame_is_refused_before_its_first_step(
    root: Path,
) -> None:
    method, data = cpc(wave_encoder()), folder(root)
    with pytest.raises(ValueError, match=TOLD):
        trainer(root, OnlineKNN(k=1)).fit(method, data)
    with pytest.raises(ValueError, match=TOLD):
        trainer(root).predict(method, folder(root))
    assert method.step == 0
    trainer(root).fit(method, folder(root))  # which evaluates nothing
    assert method.step == 2


@pytest.mark.filterwarnings("ignore:files must be long enough")
def test_clips_without_a_frame_are_left_out_and_counted(root: Path) -> None:
    data = folder(root, on_broken="skip")
    method = cpc(wave_encoder())
    with pytest.warns(UserWarning, match=TOLD + ".*; all of them are left out"):
        trainer(root, OnlineKNN(k=1)).fit(method, data)
    assert (len(data.sets.train), len(data.sets.query)) == (5, 3)
    predicted: Any = trainer(root).predict(method, folder(root, on_broken="skip"))
    assert sum(len(part["index"]) for part in predicted) == 3

    own = folder(root, on_broken="skip")
    own.setup("validate")
    encoder = wave_encoder()
    with pytest.raises(ValueError, match=r"leave them out by data\.without_short\(encoder\)"):
        extract(encoder, own.eval_dataloaders().bank, own.eval_dataloaders())
    left: Any = own.without_short(encoder)
    assert (len(left.sets.train), len(own.sets.train)) == (5, 6)
    loaders = left.eval_dataloaders()
    assert len(extract(encoder, loaders.bank, loaders).index) == 5
    assert left.without_short(encoder) is left
    with pytest.raises(ValueError, match=r"got 6 of 6 \(train\)"):
        own.without_short(SequenceEncoder(WaveEncoder(6, (900,), (1,), (0,)), Recurrent(6, 5)))


def test_an_evaluation_leaves_out_clips_without_a_frame(root: Path) -> None:
    class Model:
        name, trained_on, encoder = "m", None, speech()

        def preprocess(self) -> None:
            return None

        def check_vocabulary(self, given: Any) -> None:
            pass

    data = folder(root, on_broken="skip")
    data.setup("validate")
    with pytest.warns(UserWarning, match=TOLD):
        known: Any = as_known_to(Model(), data, on_own=True)  # type: ignore[arg-type]
    assert len(known.sets.query) == 3


def test_spectrograms_and_windows_count_as_the_encoder_sees_them(root: Path) -> None:
    mel = LogMel(8000, 6, window=20, hop=40)
    frames = SequenceEncoder(WaveEncoder(6, (4,), (1,), (0,), in_features=6), Recurrent(6, 5))
    images = LogMelImage(8000, 16, 64, 16, high=4000)
    cases: list[tuple[AudioFolder, nn.Module, str | None]] = [
        (folder(root, mel), SequenceEncoder(FrameMLP(6), Recurrent(64, 5)), None),
        (folder(root, mel), frames, r"got 2 of 6 \(train\) and 3 of 4 \(query\)"),
        (folder(root, images, eval_window=64), AudioNTT(16, 32, 2), None),
        (folder(root, images, eval_window=40), AudioNTT(16, 32, 2), r"got 6 of 6 .* 40 samples"),
        (folder(root, eval_window=30), speech(), None),  # the central window, of silence around
    ]
    for data, encoder, told in cases:
        data.setup("validate")
        loaders = data.eval_dataloaders()
        if told is None:
            assert len(extract(encoder, loaders.bank, loaders).index) == 6
        else:
            with pytest.raises(ValueError, match=told):
                extract(encoder, loaders.bank, loaders)


def test_sequences_without_a_frame_are_counted(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 9, 3))
    np.savez(tmp_path / "train.npz", values=values)
    np.savez(tmp_path / "val.npz", values=values, lengths=np.array([9, 3, 9, 2]))
    data = SequenceArrays(str(tmp_path))
    data.setup("validate")
    encoder = SequenceEncoder(WaveEncoder(6, (4,), (1,), (0,), in_features=3), Recurrent(6, 5))
    loaders = data.eval_dataloaders()
    with pytest.raises(ValueError, match=r"got 2 of 4 \(query\) .* number 1 with 3 frames"):
        extract(encoder, loaders.bank, loaders)


def test_embedding_files_leaves_out_what_has_no_frame(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Model:
        encoder = speech()

        def preprocess(self) -> WaveformInput:
            return WaveformInput(Waveform(), 8000)

    monkeypatch.setattr(command, "read_model", lambda *_: Model())
    with pytest.raises(ValueError, match=r"2\.wav must be readable, got 20 values, too few f"):
        command.embed("m", [root / "train"], root / "x.npz", batch_size=2)
    to = command.embed("m", [root / "train"], root / "x.npz", on_broken="skip")
    assert len(np.load(to)["path"]) == 5
    assert "skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        (torch.tensor([9, 2]), r"in 1\.\.5, got 2\.\.9"),
        (torch.tensor([0, 2]), r"in 1\.\.5, got 0\.\.2"),
        (torch.tensor([2.5, 2]), r"\(2,\) int64, got \(2,\) float32"),
        (torch.tensor([3]), r"\(2,\) int64, got \(1,\) int64"),
    ],
)
def test_lengths_that_the_values_do_not_have_are_refused(lengths: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"lengths of waveforms must be {told}"):
        WaveformInput(Waveform(), 8000)(Padded(torch.zeros(2, 5), lengths))
    with pytest.raises(ValueError, match=f"lengths of sequences must be {told}"):
        FrameInput()(Padded(torch.zeros(2, 5, 3), lengths))
