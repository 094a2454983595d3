"""What an encoder expects: stored in the checkpoint, and built from plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sslzoo
from sslzoo.backbones import SmallResNet
from sslzoo.batch import Padded
from sslzoo.commands import zoo as zoo_command
from sslzoo.data import (
    AudioFolder,
    HFTokenizer,
    SequenceArrays,
    TextLines,
    WaveformInput,
    WordPiece,
)
from sslzoo.data.inputs import as_config
from sslzoo.random import Keys
from sslzoo.transforms import EvalView, LogMel, LogMelViews, Waveform, plain_text
from sslzoo.zoo.card import Card
from sslzoo.zoo.preprocess import of_checkpoint, preprocessor
from sslzoo.zoo.save import save_with_card
from sslzoo.zoo.verifying import fixed_input, verify
from tests.data.text.test_datamodule import sentences

LIGHTNING = {"pytorch-lightning_version": "2.6.6", "state_dict": {}, "epoch": 3}


def through_a_file(state: dict[str, Any], tmp_path: Path) -> Any:
    """A checkpoint with a data module's state."""
    torch.save({**LIGHTNING, "TheirData": state}, tmp_path / "last.ckpt")
    return torch.load(tmp_path / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "transform",
    [Waveform(0.1, 2.0), LogMel(8000, bands=8, high=3000.0), LogMelViews(LogMel(8000), 32)],
)
def test_sound_is_prepared_as_the_checkpoint_says(transform: Any, tmp_path: Path) -> None:
    data = AudioFolder("nowhere", transform, window=1600, rate=8000, eval_window=1600)
    about = data.preprocessing()
    said, metadata = of_checkpoint(through_a_file({"preprocessing": about}, tmp_path))
    assert (said, metadata) == (about, {})
    again = preprocessor(said)
    assert isinstance(again, WaveformInput)
    wave = torch.randint(-9999, 9999, (2, 2000), dtype=torch.int16)
    assert torch.equal(again(wave), data.encoder_input()(wave))
    assert again.fingerprint() == data.encoder_input().fingerprint()


def test_text_is_prepared_with_the_vocabulary_of_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "lines.txt").write_text("\n".join(sentences()) + "\n")
    data = TextLines(str(tmp_path / "lines.txt"), plain_text(), WordPiece(90), batch_size=4)
    data.setup("fit")
    saved = through_a_file(data.state_dict(), tmp_path)
    said, metadata = of_checkpoint(saved)
    again: Any = preprocessor(said, metadata["tokenizer"])
    assert again.fingerprint() == data.encoder_input().fingerprint()


def test_frames_are_prepared_as_the_checkpoint_says(tmp_path: Path) -> None:

    values = np.random.default_rng(0).normal(3, 2, (8, 9, 2)).astype(np.float32)
    np.savez(tmp_path / "train.npz", values=values)
    data = SequenceArrays(str(tmp_path), batch_size=4)
    data.setup("fit")
    said, _ = of_checkpoint(through_a_file(data.state_dict(), tmp_path))
    again: Any = preprocessor(said)
    assert again.fingerprint() == data.encoder_input().fingerprint()


class Plus:
    """A user's own views of sound."""

    partners = 0

    def __init__(self, amount: float, *, doubled: bool = False) -> None:
        self.amount = 2 * amount if doubled else amount
        self.doubled = doubled

    def __call__(self, waves: list[Tensor], keys: Keys) -> list[Tensor]:
        return [wave + self.amount for wave in waves]

    def evaluation(self, waves: Tensor | Padded) -> Tensor | Padded:
        assert isinstance(waves, Tensor)
        return waves + self.amount


class Forgetful:
    def __init__(self, amount: float) -> None:
        self.kept = amount


class Gathering:
    """Its attributes have the arguments' names, and do not build it."""

    def __init__(self, *amounts: float, **more: float) -> None:
        self.amounts, self.more = amounts, more


class Failing(Forgetful):
    built = False

    def __init__(self, kept: float) -> None:
        if Failing.built:
            raise RuntimeError("only once")
        Failing.built = True
        super().__init__(kept)


def test_what_keeps_its_arguments_is_written_as_a_class_path() -> None:
    name = f"{__name__}.Plus"
    wanted = {"class_path": name, "init_args": {"amount": 0.5, "doubled": False}}
    assert as_config(Plus(0.5)) == wanted
    assert as_config(Plus(0.5, doubled=True)) is None  # its attribute is another number
    assert as_config(Forgetful(1.0)) is None
    assert as_config(Gathering(1.0)) is None
    assert as_config(Failing(1.0)) is None
    assert as_config(Plus(torch.ones(2))) is None  # type: ignore[arg-type]
    config = {
        "class_path": "sslzoo.data.HFTokenizer",
        "init_args": {
            "name": "bert",
            "local_files_only": False,
            "canonical": False,
            "clean": False,
        },
    }
    assert as_config(HFTokenizer("bert")) == config


def test_nothing_is_known_of_a_transform_that_does_not_keep_its_arguments() -> None:
    assert AudioFolder("nowhere", Forgetful(1.0)).preprocessing() is None  # type: ignore[arg-type]


def test_a_checkpoint_that_says_nothing_gives_nothing() -> None:
    hyper = {"preprocessing": {"size": 8}, "tokenizer": "theirs"}  # of a method, not of the data
    for saved in ({**LIGHTNING, "hyper_parameters": hyper}, LIGHTNING, {}, None, [1], "text"):
        assert of_checkpoint(saved) == (None, {})
    assert preprocessor(None) is None


@pytest.mark.parametrize(
    "wrong",
    [{"size": "32"}, {"kind": "smell"}, {"kind": ["image"]}, {"size": 8, "path": "/etc"}, {}],
)
def test_a_checkpoint_that_says_something_else_is_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data module's state in the checkpoint: "):
        of_checkpoint(through_a_file({"preprocessing": wrong}, tmp_path))


# -- channels


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_entry_has_any_number_of_channels(
    channels: int, normalized: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about: dict[str, Any] = {"size": 8, "resize": 9, "channels": channels}
    if normalized:
        about |= {"mean": [0.5] * channels, "std": [0.2] * channels}
        del about["channels"]
    init = {"widths": [8, 16], "in_chans": channels}
    card = Card(
        name="planes",
        file="planes.safetensors",
        method="sslzoo.methods.SimCLR",
        backbone={"class_path": "sslzoo.backbones.SmallResNet", "init_args": init},
        num_features=16,
        data="nothing",
        preprocessing=about,
        license={"code": "MIT", "weights": "MIT"},
    )
    assert card.channels == channels
    assert card.preprocess()(fixed_input(30, channels)).shape == (1, channels, 8, 8)
    made = save_with_card(SmallResNet((8, 16), in_chans=channels), card, tmp_path)
    assert len(made.features) == 4
    path = tmp_path / "planes.safetensors"
    assert verify(str(path)) == made
    encoder: Any = sslzoo.load(str(path))
    assert isinstance(encoder.preprocess, EvalView)
    pictures = torch.randint(0, 256, (2, channels, 20, 30), dtype=torch.uint8)
    assert encoder(encoder.preprocess(pictures)).shape == (2, 16)
    zoo_command.main(
        ["export", str(path), "--format", "torch.export", "--to", str(tmp_path / "a.pt2")]
    )
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.pt2")


def test_the_fixed_input_tells_all_channels_apart() -> None:
    planes = fixed_input(32, 13)[0]
    assert len({plane.numpy().tobytes() for plane in planes}) == 13
    assert torch.equal(planes[:3], fixed_input(32)[0])


def test_an_encoder_that_gives_no_features_is_refused(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    from sslzoo.zoo.verifying import fixed_features

    card = Card(
        name="pair",
        file="pair.safetensors",
        method="theirs",
        backbone={"class_path": "x.Y"},
        num_features=2,
        data="nothing",
        preprocessing={"size": 8},
        license={"code": "MIT", "weights": "MIT"},
    )
    net: Any = Pair()
    net.preprocess = card.preprocess()
    with pytest.raises(ValueError, match="the features of 'pair' must be a tensor, got a tuple"):
        fixed_features(net, card)


PIXELS = torch.randint(0, 256, (2, 3, 12, 9), dtype=torch.uint8)
ROWS = PIXELS.permute(0, 2, 3, 1).numpy()
CLEAR = {
    "tensor": PIXELS,
    "array": ROWS,
    "array of channels first": PIXELS.numpy(),
    "array from big-endian file": (PIXELS.numpy().astype(">u2") * 257),
    "reversed array": ROWS[::-1][::-1],
    "read-only array": np.frombuffer(ROWS.tobytes(), np.uint8).reshape(ROWS.shape),
    "float array": ROWS / 255,
    "list of PIL": [Image.fromarray(row) for row in ROWS],
    "list of arrays": list(ROWS),
    "tuple of tensors": tuple(PIXELS),
    "mixed list": [Image.fromarray(ROWS[0]), PIXELS[1]],
}


@pytest.mark.parametrize("kind", list(CLEAR))
def test_images_of_every_clear_form_are_the_same_input(kind: str) -> None:
    prepare: Any = preprocessor({"size": 8, "resize": 9, "mean": [0.5] * 3, "std": [0.2] * 3})
    wanted = prepare(PIXELS)
    given: Any = CLEAR[kind]
    torch.testing.assert_close(prepare(given), wanted, atol=2.1 / 255 / 0.2, rtol=0)
    torch.testing.assert_close(prepare(given[0]), wanted[:1], atol=2.1 / 255 / 0.2, rtol=0)


def test_images_of_several_sizes_are_one_batch() -> None:
    prepare: Any = preprocessor({"size": 8, "channels": 3})
    pictures = [Image.new("RGB", (8 + i, 9), (255, 0, 0)) for i in range(3)]
    gray = Image.new("L", (20, 10), 255)
    turned = Image.new("RGB", (10, 12), (255, 0, 0))
    turned.getexif()[0x0112] = 6
    out = prepare([*pictures, gray, turned])
    assert out.shape == (5, 3, 8, 8)
    torch.testing.assert_close(out.mean((2, 3))[0], torch.tensor([1.0, 0, 0]))
    assert (out[3] == 1).all()  # a gray picture is repeated, as a folder of images does


ONE = {"size": 8, "channels": 1}
THREE = {"size": 8, "channels": 3}


@pytest.mark.parametrize(
    ("about", "given", "said"),
    [
        (THREE, [], r"a list of images, got \[\]"),
        (THREE, None, "got NoneType"),
        (THREE, [[1, 2]], "got list"),
        (THREE, torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "3 channels, got 8 .*permute"),
        (THREE, torch.zeros(8, 8, 3), r"got Tensor torch.float32 \(8, 8, 3\)"),
        (THREE, torch.zeros(1, 1, 8, 8), "must have 3 channels, got 1"),
        (THREE, torch.zeros(8, 8), "must have 3 channels, got 1"),
        (THREE, torch.zeros(1, 1, 3, 8, 8), "got Tensor"),
        (THREE, np.zeros((5, 8, 8), np.uint8), r"got ndarray uint8 \(5, 8, 8\)"),
        (THREE, np.zeros((3, 8, 3), np.uint8), "got ndarray"),
        (THREE, np.array([["a"]]), "must be numbers"),
        (THREE, torch.zeros(2, 3, 0, 0), "must have pixels, got shape"),
        (THREE, np.ma.masked_equal(ROWS, ROWS[0, 0, 0, 0]), "no masked values, got"),
        (THREE, np.zeros((2, 8, 8, 3), "M8[s]"), "must be numbers, got an array of datetime64"),
        (THREE, Image.new("RGBA", (8, 8)), "3 channels, got 4 .mode RGBA"),
        (ONE, Image.new("RGB", (8, 8)), "1 channels, got 3 .mode RGB"),
        ({"size": 8}, torch.zeros(32, 8, 8), "with 1, 3 or 4 channels, got .*B, 1, H, W"),
        ({"size": 8}, torch.zeros(1, 3, 8, 8).to_sparse(), "sparse|dense"),
        (THREE, torch.zeros(1, 3, 8, 8, dtype=torch.complex64), "got complex64"),
    ],
)
def test_what_is_no_batch_of_images_is_one_sentence(
    about: dict[str, Any], given: Any, said: str
) -> None:
    prepare: Any = preprocessor(about)
    with pytest.raises(ValueError, match=said):
        prepare(given)


def test_a_path_is_the_image_in_it(tmp_path: Path) -> None:
    prepare: Any = preprocessor(THREE)
    image = Image.effect_noise((40, 30), 80).convert("RGB")
    image.save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(prepare(path), prepare(image))
    assert torch.equal(prepare([tmp_path / "a.png"] * 2), prepare([image, image]))
    with pytest.raises(OSError, match=r"missing\.png"):
        prepare(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises((ValueError, OSError), match=r"text\.png"):
        prepare(tmp_path / "text.png")


def test_sound_and_frames_of_every_clear_form_are_the_same_input() -> None:
    sound: Any = preprocessor(
        {"kind": "waveform", "rate": 8, "transform": {"class_path": "sslzoo.transforms.Waveform"}}
    )
    waves = torch.randint(-9999, 9999, (2, 20), dtype=torch.int16)
    for given in (waves.numpy(), waves.numpy() / 32768, waves / 32768):
        torch.testing.assert_close(sound(given), sound(waves))
        torch.testing.assert_close(sound(given[0]), sound(waves[:1]))
        torch.testing.assert_close(sound(list(given)).values, sound(waves))
    torch.testing.assert_close(sound(waves.int(), (-32768, 32768)), sound(waves))
    for wrong in ([], [[0.1]], "a.wav", np.zeros((20, 2)), np.zeros(0), None, torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"waveforms must be \(B, L\)"):
            sound(wrong)
    frames: Any = preprocessor({"kind": "frames", "mean": [1.0, 2.0], "std": [1.0, 2.0]})
    values = torch.randn(2, 5, 2)
    for given in (values.numpy(), values.double()):
        torch.testing.assert_close(frames(given), frames(values))
        torch.testing.assert_close(frames(given[0]), frames(values[:1]))
        torch.testing.assert_close(frames(list(given)).values, frames(values))
    for wrong in ([], [1.0], "a.npz", np.zeros((2, 5, 3)), np.zeros(2), None):
        with pytest.raises(ValueError, match=r"sequences must be \(B, T, "):
            frames(wrong)
    with pytest.raises(ValueError, match="sequences must be finite, got NaN"):
        frames(torch.full((1, 5, 2), torch.nan))
