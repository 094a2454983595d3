"""The linear probe that is added to the quality table: whose features it fits, what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import sslzoo
from benchmarks import linear
from benchmarks.driver import ROOT
from sslzoo.eval.linear import linear_probe

ENCODER = "simclr-small_resnet-cifar10jpeg"


def draw(folder: Path, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """PNG files of noise, a color of it darker per class; the images in [0, 1], and labels."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = [], []
    for label, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            scale = 0.6 + 0.4 * torch.rand(3, generator=generator)
            scale[label] -= 0.2
            pixels = (255 * scale * torch.rand(32, 32, 3, generator=generator)).byte()
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number}.png")
            images.append(pixels.permute(2, 0, 1) / 255)
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def test_the_features_are_the_shipped_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, query = draw(tmp_path / "train", 20, 0), draw(tmp_path / "test", 10, 1)
    results = tmp_path / "results"
    results.mkdir()
    kept = {"config": "configs/simclr/folder_small_10ep.yaml", "knn_top1": 0.5}
    (results / "simclr.json").write_text(json.dumps(kept))
    monkeypatch.setattr(linear, "RESULTS", results)
    threads = torch.get_num_threads()
    linear.main(["--data", str(tmp_path), "--names", "simclr"])
    torch.set_num_threads(threads)
    encoder = sslzoo.load(str(ROOT / "zoo_weights" / f"{ENCODER}.safetensors"))
    with torch.no_grad():
        features = encoder(bank[0]), encoder(query[0])
    expected = linear_probe(features[0], bank[1], features[1], query[1], 3)
    found = json.loads((results / "simclr.json").read_text())
    assert found == {**kept, "linear_top1": pytest.approx(expected, abs=1 / 30)}
    assert found["linear_top1"] > 0.4  # 1/3 by chance


def test_a_name_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--names must have one encoder each in .*, got amoco"):
        linear.main(["--data", str(tmp_path), "--names", "amoco"])
