"""Models of an evaluation: the encoders of runs, of zoo entries and of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
import yaml
from lightning import LightningDataModule, seed_everything
from torch import nn

import sslzoo
from sslzoo.transforms.eval_view import EvalView
from sslzoo.zoo.building import build_backbone


class Model(NamedTuple):
    """An encoder to evaluate.

    Args:
        name: as it was asked for.
        encoder: (B, ...) -> (B, num_features).
        view: that its training normalised images by; None: not known.
        config: the run's, or what the card says of the recipe.
    """

    name: str
    encoder: nn.Module
    view: EvalView | None
    config: dict[str, Any]


def read_model(name: str) -> Model:
    """A run's folder, or what `sslzoo.load` takes.

    Raises:
        ValueError: the folder holds no finished run, or see `sslzoo.load`.
    """
    folder = Path(name)
    if not folder.is_dir():
        encoder: Any = sslzoo.load(name)
        card = getattr(encoder, "card", None)
        about = {} if card is None else json.loads(card.to_json())
        view = getattr(encoder, "preprocess", None)
        return Model(name, encoder, view if isinstance(view, EvalView) else None, about)
    config, checkpoint = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    if not config.is_file() or not checkpoint.is_file():
        raise ValueError(f"a run has config.yaml and checkpoints/last.ckpt, {name!r} has not both")
    content = yaml.safe_load(config.read_text())
    data = build_data(content["data"])
    return Model(name, sslzoo.load(str(checkpoint)), getattr(data, "eval_view", None), content)


def build_data(section: dict[str, Any]) -> LightningDataModule:
    """The `data` of a config, as the command builds it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parsed = parser.parse_object({"data": section})
    return parser.instantiate(parsed)["data"]  # type: ignore[no-any-return]


def untrained(model: Model) -> nn.Module:
    """The same net with new weights, of seed 0.

    Raises:
        ValueError: neither a config nor a card says how it is built.
    """
    init = model.config.get("model", {}).get("init_args", {})
    backbone = init.get("backbone") or model.config.get("backbone")
    if backbone is None:
        raise ValueError(f"{model.name!r} does not say how its backbone is built")
    seed_everything(0, verbose=False)
    return build_backbone(backbone).eval()
