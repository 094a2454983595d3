"""The fingerprint changes with samples, labels, files and inputs, and with nothing else."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo.data import (
    AudioFolder,
    ImageFolder,
    Modality,
    MultiViewFolder,
    SampleDataModule,
    SequenceArrays,
    TextLines,
    WordPiece,
    with_views,
)
from sslzoo.eval.fingerprint import array_digest, described, text_digest
from sslzoo.transforms import EvalView, LogMel, Waveform, plain_text, simclr_views
from tests.data.image.test_multi_view import write_tree
from tests.data.test_with_views import Users
from tests.data.text.test_datamodule import sentences


def of(data: SampleDataModule) -> str:
    data.setup("validate")
    found = data.fingerprint()
    assert found is not None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("decode", ["array", "workers"])
def test_of_images(folder: Path, decode: str) -> None:
    def data(**options: Any) -> ImageFolder:
        return ImageFolder(str(folder), simclr_views(16), 2, decode=decode, **options)  # type: ignore[arg-type]

    first = of(data())
    assert of(data(seed=3, eval_batch_size=2)) == first
    view = EvalView(16, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert of(data(eval_view=view)) != first
    assert of(data(train_fraction=0.5)) != first
    path = folder / "val" / "a" / "1.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    os.utime(path, (1, 1))
    assert of(data()) != first
    assert data().with_input(view).eval_view.mean == (0.5,) * 3


def test_wants_sets(folder: Path) -> None:
    data = ImageFolder(str(folder), simclr_views(16), 2)
    with pytest.raises(ValueError, match="call setup"):
        data.fingerprint()


def test_of_a_users_images_is_not_known() -> None:
    data = with_views(Users(), simclr_views(10), num_classes=3)
    data.setup("validate")
    assert data.fingerprint() is None


def test_of_several_modalities(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    both = [Modality("image", "image"), Modality("depth", "depth")]

    def data(modalities: list[Modality] = both, **options: Any) -> MultiViewFolder:
        return MultiViewFolder(str(root), modalities, 16, batch_size=3, num_workers=0, **options)

    first = of(data())
    assert of(data(seed=3, flip=0.0)) == first
    assert of(data(space="rgb")) != first
    assert of(data(labels=True)) != first
    assert of(data([both[0], Modality("depth", "depth", [0.5], [0.2])])) != first
    assert of(data([both[0], Modality("depth", "labels")])) != first  # read as something else
    os.utime(root / "val" / "depth" / "cat" / "1.png", (1, 1))
    assert of(data()) != first


@pytest.mark.parametrize("decode", ["memory", "workers"])
def test_of_sound(tmp_path: Path, decode: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    for i in range(4):
        wave = np.arange(i, 900 + i, dtype=np.int16)
        soundfile.write(tmp_path / f"{i % 2}_{i // 2}_{i}.wav", wave, 8000)

    def data(transform: Any = None, **options: Any) -> AudioFolder:
        plain = {"window": 200, "rate": 8000, "pattern": "{a}_{b}_{n}.wav", "label": "a"}
        plain |= {"decode": decode, "query": {"n": [3]}}
        return AudioFolder(str(tmp_path), transform or Waveform(), **{**plain, **options})  # type: ignore[arg-type]

    first = of(data())
    assert of(data(seed=3, window=300, eval_batch_size=2, batch_size=2)) == first
    changed = [
        of(data(**options))
        for options in (
            {"transform": Waveform(0.1)},
            {"transform": LogMel(8000, bands=8, window=64)},
            {"transform": LogMel(8000, bands=8, window=64, low=30.0)},
            {"rate": 16000},
            {"label": "b"},
            {"query": {"n": [2]}},
            {"eval_window": 100},
        )
    ]
    os.utime(tmp_path / "0_0_0.wav", (1, 1))
    assert len({first, *changed, of(data())}) == 2 + len(changed)


def test_of_text(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    some = sentences()
    text, labeled, pairs = (tmp_path / name for name in ("text.txt", "labeled.tsv", "dev.csv"))
    text.write_text("\n".join(some))
    labeled.write_text("\n".join(f"{i % 2}\t{a}" for i, a in enumerate(some)))
    pairs.write_text("\n".join(f"{a},{some[0]},{i % 5}" for i, a in enumerate(some)))

    def data(num_ids: int = 60, **options: Any) -> TextLines:
        plain = {"labeled_train": labeled, "labeled_test": labeled, "pairs": {"dev": pairs}}
        return TextLines(str(text), plain_text(), WordPiece(num_ids), **{**plain, **options})

    first = of(data())
    assert of(data(seed=3, batch_size=2, eval_batch_size=2)) == first
    changed = [of(data(num_ids=40)), of(data(max_length=8)), of(data(pairs={}))]
    changed.append(of(data(labeled_train=None, labeled_test=None)))
    pairs.write_text(pairs.read_text().replace(",4\n", ",3\n"))
    changed.append(of(data()))
    labeled.write_text(labeled.read_text().replace("a", "A", 1))
    changed.append(of(data()))
    assert len({first, *changed}) == 1 + len(changed)


def test_of_arrays(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((6, 8, 2)).astype(np.float32)

    def write(values: np.ndarray, label: np.ndarray) -> None:
        for name in ("train", "val"):
            np.savez(tmp_path / f"{name}.npz", values=values, label=label)

    def data(**options: Any) -> SequenceArrays:
        return SequenceArrays(str(tmp_path), **options)

    label = np.arange(6) % 2
    write(values, label)
    first = of(data())
    write(values, label)
    assert of(data(seed=3, window=4, eval_batch_size=2)) == first
    changed = [of(data(standardize=False)), of(data(val_fraction=0.5))]
    write(values, 1 - label)
    changed.append(of(data()))
    write(values + (np.arange(6) == 3)[:, None, None], label)
    changed.append(of(data()))
    assert len({first, *changed}) == 1 + len(changed)


class Slotted:
    """Its state is not in its `__dict__`."""

    __slots__ = ("x",)

    def __init__(self, x: int) -> None:
        self.x = x


def scale(x: float) -> Callable[[float], float]:
    return lambda y: x * y


def test_an_object_is_described_by_its_state() -> None:
    for same in ((EvalView(8), EvalView(8)), (torch.ones(2), torch.ones(2)), (simclr_views,) * 2):
        assert described(same[0]) == described(same[1])
    for one, other in (
        (EvalView(8), EvalView(9)),
        (torch.ones(2), torch.zeros(2)),
        (np.zeros(5000), np.arange(5000) // 2500 // 2),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        ([1, 2], [12]),
        ({"a": 1}, {"a": 2}),
        (Slotted(1), Slotted(2)),
        (scale(1.0), scale(2.0)),
        (functools.partial(max, 1), functools.partial(max, 2)),
    ):
        assert described(one) != described(other)
    assert text_digest(["a", "bc"]) != text_digest(["ab", "c"])
    values = np.arange(60).reshape(10, 6)
    assert array_digest(values, block=3) == array_digest(values)
    assert array_digest(values) != array_digest(values.reshape(6, 10))
