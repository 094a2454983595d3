"""Encoders leave as fp16 safetensors and come back by their card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import quality
from benchmarks.card import export, load_encoder
from sslzoo.backbones import SmallResNet

SMALL = {"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"widths": [8, 16]}}


def test_an_exported_encoder_gives_the_features_it_had(tmp_path: Path) -> None:
    net = SmallResNet((8, 16)).eval()
    net(torch.rand(2, 3, 8, 8))
    digest = export(net, tmp_path / "net.safetensors")
    assert digest == hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    loaded = load_encoder(SMALL, tmp_path / "net.safetensors")
    x = torch.rand(4, 3, 8, 8)
    assert next(loaded.parameters()).dtype == torch.float32
    torch.testing.assert_close(loaded(x), net(x), rtol=1e-2, atol=1e-3)


def test_the_small_net_fits_and_a_larger_one_is_refused(tmp_path: Path) -> None:
    export(SmallResNet(), tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="at most 2500000 bytes"):
        export(nn.Linear(2000, 2000), tmp_path / "large.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    nn.init.constant_(net.bias, 1e6)
    with pytest.raises(ValueError, match="bias"):
        export(net, tmp_path / "net.safetensors")


@pytest.mark.slow
def test_quality_trains_scores_and_exports(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for part, count in (("train", 30), ("test", 12)):
        for shade in range(3):
            folder = tmp_path / "data" / part / f"class{shade}"
            folder.mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(0, 60, (32, 32, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray((noise + 60 * shade).numpy()).save(folder / f"{i}.png")
    places = {name: str(tmp_path / name) for name in ("runs", "output", "weights")}
    quality.main(
        [
            *("tiny", "--config", "simclr/folder_small_10ep", "--data", str(tmp_path / "data")),
            *(f"--{name}={place}" for name, place in places.items()),
            *("--", "--trainer.max_epochs=1", "--data.batch_size=30"),
            "--trainer.enable_progress_bar=false",
        ]
    )
    result = json.loads((tmp_path / "output" / "tiny.json").read_text())
    (card,) = (json.loads(path.read_text()) for path in (tmp_path / "weights").glob("*.json"))
    weights = tmp_path / "weights" / card["file"]
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert card["score"] == {"val/knn_top1_k20_t0.07": result["knn_top1_float16"]}
    assert (result["bank"], result["queries"], result["epochs"]) == (90, 36, 1)
    assert result["minutes"] > 0
    assert load_encoder(card["backbone"], weights).num_features == card["num_features"]
