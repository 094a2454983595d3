"""Card: an encoder as fp16 safetensors, and what is known about it as JSON beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from sslzoo.eval.classifier import fill
from sslzoo.zoo import card_of
from sslzoo.zoo.building import build_backbone
from sslzoo.zoo.saving import save
from sslzoo.zoo.verifying import fixed_features

LARGEST = 2_500_000  # bytes of an encoder in the repository
Score = dict[str, Any]


def export(encoder: nn.Module, path: Path) -> str:
    """Write the encoder's state, floats as float16; the sha256 of the file.

    Raises:
        ValueError: a value does not fit into float16, or the file is larger than 2.5 MB.
    """
    digest = save(encoder, path, "float16")
    size = path.stat().st_size
    if size > LARGEST:
        path.unlink()
        raise ValueError(f"an encoder here has at most {LARGEST} bytes, {path.name} has {size}")
    return digest


def load_encoder(backbone: dict[str, Any], path: Path) -> nn.Module:
    """The backbone of a config (class_path, init_args) with the file's weights, in float32."""
    encoder = build_backbone(backbone)
    fill(encoder, load_file(path), str(path))
    return encoder.eval()


def card(
    stem: Path,
    result: Score,
    backbone: dict[str, Any],
    view: dict[str, Any],
    digest: str,
    encoder: nn.Module,
) -> dict[str, Any]:
    """The card of one encoder; its score is that of the weights in the file."""
    about = {
        "name": stem.name,
        "file": f"{stem.name}.safetensors",
        "sha256": digest,
        "dtype": "float16",
        "method": result["method"],
        "backbone": {
            "class_path": backbone["class_path"],
            "init_args": backbone.get("init_args") or {},
        },
        "num_features": encoder.num_features,
        "data": result["data"],
        "preprocessing": {"range": [0.0, 1.0], **view},
        "recipe": result["config"],
        "recipe_changes": result["extra"],
        "commit": result["commit"],
        "epochs": result["epochs"],
        "seeds": result["seeds"],
        "protocol": result["protocol"],
        "score": {"val/knn_top1_k20_t0.07": result["knn_top1_float16"]},
        "licence": {
            "code": "MIT",
            "weights": f"MIT; trained on {result['data']}, whose images are not included",
        },
    }
    return {**about, "features": fixed_features(encoder, card_of(about, stem.name))}
