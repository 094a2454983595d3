"""The fingerprint changes with pixels, labels, files and the view, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslzoo.data import ImageFolder
from sslzoo.data.fingerprint import fingerprint
from sslzoo.transforms import EvalView, simclr_views


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


def of(folder: Path, decode: str, **options: object) -> str:
    data = ImageFolder(str(folder), simclr_views(16), 2, decode=decode, **options)  # type: ignore[arg-type]
    data.setup("validate")
    return fingerprint(data)


@pytest.mark.parametrize("decode", ["array", "workers"])
def test_changes_where_the_features_would(folder: Path, decode: str) -> None:
    first = of(folder, decode)
    assert of(folder, decode, seed=3) == first
    view = EvalView(16, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert of(folder, decode, eval_view=view) != first
    assert of(folder, decode, train_fraction=0.5) != first
    path = folder / "val" / "a" / "1.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    os.utime(path, (1, 1))
    assert of(folder, decode) != first


def test_wants_sets(folder: Path) -> None:
    data = ImageFolder(str(folder), simclr_views(16), 2)
    with pytest.raises(ValueError, match="call setup"):
        fingerprint(data)
