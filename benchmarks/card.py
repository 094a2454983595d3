"""Card: an encoder as fp16 safetensors, and what is known about it as JSON beside it."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from safetensors.torch import load_file, save_file
from torch import nn

LARGEST = 2_500_000  # bytes of an encoder in the repository
Score = dict[str, Any]


def export(encoder: nn.Module, path: Path) -> str:
    """Write the encoder's state, floats as float16; the sha256 of the file.

    Raises:
        ValueError: a value does not fit into float16, or the file is larger than 2.5 MB.
    """
    state = {}
    for name, value in encoder.state_dict().items():
        kept = value.half() if value.is_floating_point() else value
        if not kept.isfinite().all():
            raise ValueError(f"{name} has values that are not finite in float16")
        state[name] = kept.contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(state, part, metadata={"format": "pt"})
    size = part.stat().st_size
    if size > LARGEST:
        part.unlink()
        raise ValueError(f"an encoder here has at most {LARGEST} bytes, {path.name} has {size}")
    part.chmod(0o644)
    part.replace(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_encoder(backbone: dict[str, Any], path: Path) -> nn.Module:
    """The backbone of a config (class_path, init_args) with the file's weights, in float32."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=nn.Module)
    parsed = parser.parse_object({"backbone": copy.deepcopy(backbone)})  # it changes what it gets
    made = parser.instantiate(parsed)
    encoder: nn.Module = made["backbone"]
    with torch.no_grad():
        encoder.load_state_dict(load_file(path))
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
    return {
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
