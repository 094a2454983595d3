"""Card: an encoder as fp16 safetensors, and what is known about it as JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from sslzoo.eval.classifier import fill
from sslzoo.zoo import card_of
from sslzoo.zoo.build import build_backbone, count_parameters
from sslzoo.zoo.preprocess import preprocessor, tokenizer_json
from sslzoo.zoo.save import save
from sslzoo.zoo.verifying import fixed_features

SAMPLES = {"image": "images", "waveform": "recordings", "text": "sentences", "frames": "sequences"}
LARGEST = 2_500_000  # bytes of an encoder in the repository
Score = dict[str, Any]


def export(encoder: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> str:
    """Write the encoder's state, floats as float16; the sha256 of the file.

    Raises:
        ValueError: a value does not fit into float16, or the file is larger than 2.5 MB.
    """
    digest = save(encoder, path, "float16", metadata)
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
    preprocessing: dict[str, Any],
    digest: str,
    encoder: nn.Module,
    score: dict[str, float],
) -> dict[str, Any]:
    """The card of one encoder.

    Args:
        stem: of the weights' path, without the suffix.
        result: what is known of the run.
        backbone: of its config.
        preprocessing: see `Card`.
        digest: of the weights.
        encoder: loaded from them.
        score: its own, not that of the encoder that was trained.
    """
    samples = SAMPLES[preprocessing.get("kind", "image")]
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
        "parameters": count_parameters(encoder),
        "data": result["data"],
        "preprocessing": preprocessing,
        "recipe": result["config"],
        "recipe_changes": result["extra"],
        "commit": result["commit"],
        "epochs": result["epochs"],
        "seeds": result["seeds"],
        "protocol": result["protocol"],
        "score": score,
        "license": {
            "code": "MIT",
            "weights": f"MIT; trained on {result['data']}, whose {samples} are not included",
        },
    }
    made = card_of(about, stem.name)
    known: Any = encoder
    known.preprocess = preprocessor(preprocessing, tokenizer_json(stem.with_suffix(".safetensors")))
    return {**about, "features": fixed_features(encoder, made)}


def keep(
    stem: Path,
    encoder: nn.Module,
    backbone: dict[str, Any],
    result: Score,
    described: tuple[dict[str, Any], dict[str, str]],
    score: Callable[[nn.Module], dict[str, float]],
) -> dict[str, float]:
    """Write an encoder in float16 with its card, and score what is in the file.

    Args:
        stem: of both paths, without the suffix.
        encoder: trained.
        backbone: of the run's config.
        result: what is known of the run.
        described: the card's preprocessing, and the metadata of the weights (`describe`).
        score: of an encoder, by metric.

    Returns:
        The score of the file's weights.
    """
    preprocessing, metadata = described
    path = stem.with_suffix(".safetensors")
    digest = export(encoder, path, metadata)
    loaded = load_encoder(backbone, path)
    own = score(loaded)
    content = card(stem, result, backbone, preprocessing, digest, loaded, own)
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    return own
