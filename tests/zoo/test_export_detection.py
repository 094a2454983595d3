"""Export with the names of detectron2 and mmdetection."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sslzoo.backbones import SmallResNet, small_vit, timm_backbone
from sslzoo.zoo.export import detectron2_name, export


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv2.weight", "res2.0.conv2.weight"),
        ("layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
    ],
)
def test_names_are_those_of_mocos_script(ours: str, theirs: str) -> None:
    assert detectron2_name(ours) == theirs


def test_a_resnet_goes_to_both(tmp_path: Path) -> None:
    encoder = timm_backbone("resnet18").eval()
    path = export(encoder, tmp_path / "backbone.pkl", "detectron2", 32)
    content = pickle.loads(path.read_bytes())
    assert content["matching_heuristics"] is True
    state: dict[str, Any] = encoder.state_dict()
    assert set(content["model"]) == {
        detectron2_name(name) for name in state if "num_batches" not in name
    }
    assert (content["model"]["res2.0.conv1.weight"] == state["layer1.0.conv1.weight"].numpy()).all()
    saved = torch.load(export(encoder, tmp_path / "b.pth", "mmdetection", 32), weights_only=True)
    assert list(saved["state_dict"]) == list(state)
    assert torch.equal(saved["state_dict"]["conv1.weight"], state["conv1.weight"])


def test_a_vit_keeps_its_names_for_vitdet(tmp_path: Path) -> None:
    encoder = small_vit(16, 4, 8, 1, 2).eval()
    path = export(encoder, tmp_path / "vit.pkl", "detectron2", 16)
    assert "blocks.0.attn.qkv.weight" in pickle.loads(path.read_bytes())["model"]


@pytest.mark.parametrize("to", ["detectron2", "mmdetection"])
def test_other_networks_are_refused(tmp_path: Path, to: Any) -> None:
    with pytest.raises(ValueError, match=f"a ResNet with torchvision's names for {to}, got"):
        export(SmallResNet((4, 8)).eval(), tmp_path / "x", to, 16)
    assert not list(tmp_path.iterdir())
