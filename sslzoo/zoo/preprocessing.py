"""Preprocessing: what makes of samples what an encoder takes, by the card's kind of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonargparse
from lightning import LightningDataModule
from safetensors import safe_open
from torch import Tensor

from sslzoo.data import (
    AudioDataModule,
    FrameInput,
    SequenceArrays,
    TextDataModule,
    TextInput,
    TextTokenizer,
    WaveformInput,
    WordPiece,
)
from sslzoo.data.inputs import AudioViews
from sslzoo.zoo.card import Card

TOKENIZER = "tokenizer"  # in the metadata of weights: the JSON of a `WordPiece`


def preprocessor(card: Card, file: Path) -> Callable[[Any], Any] | None:
    """What `encoder.preprocess` is; None where the card says nothing.

    Args:
        card: of the encoder.
        file: its weights.

    Raises:
        ValueError: the card names no class that there is, or an encoder of text has no tokenizer.
    """
    about = dict(card.preprocessing or {})
    about.pop("kind", None)
    match card.kind:
        case "image":
            return card.preprocess()
        case "waveform":
            transform = _build(AudioViews, about.pop("transform"))
            return WaveformInput(transform, **about)
        case "text":
            return TextInput(_tokenizer(about.get("tokenizer"), file), about["max_length"])
        case "frames":
            return FrameInput(**about)
    return None


def _build(base: type, named: dict[str, Any]) -> Any:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--made", type=base)
    try:
        return parser.instantiate(parser.parse_object({"made": named}))["made"]
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise ValueError(f"no {base.__name__} {named.get('class_path')!r}: {error}") from None


def _tokenizer(named: dict[str, Any] | None, file: Path) -> TextTokenizer:
    if named is not None:
        tokenizer: TextTokenizer = _build(TextTokenizer, named)
        tokenizer.prepare([])
        return tokenizer
    text = metadata(file).get(TOKENIZER)
    if text is None:
        raise ValueError(f"{file} has no tokenizer in its metadata, and its card names none")
    return WordPiece.from_json(text)


def metadata(file: Path) -> dict[str, str]:
    """What a file of safetensors says besides its tensors."""
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def vocabulary(saved: Any) -> str | None:
    """The digest of the tokenizer that a Lightning checkpoint was trained with, if it had one."""
    states = (state for state in saved.values() if isinstance(state, dict))
    return next((state["tokenizer"] for state in states if "tokenizer" in state), None)


def describe(
    data: dict[str, Any], view: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any] | None, dict]:
    """The `preprocessing` of a card, and what goes into the metadata of the weights.

    Args:
        data: the `data` of a run's config.
        view: `size`, `mean` and `std` of images, where the data does not say them or is not at
            hand; what is given here counts.

    Returns:
        The first is None where neither says anything: the data module is a user's own.

    Raises:
        ValueError: the data is not where the config says, or has no images to have a view.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    module: Any = parser.instantiate(parser.parse_object({"data": data}))["data"]
    if view and isinstance(module, AudioDataModule | TextDataModule | SequenceArrays):
        raise ValueError(f"{sorted(view)} are of images, a {type(module).__name__} has none")
    if isinstance(module, AudioDataModule):
        window = {} if module.eval_window is None else {"window": module.eval_window}
        transform = data["init_args"]["transform"]
        return {"kind": "waveform", "rate": module.rate, **window, "transform": transform}, {}
    if isinstance(module, TextDataModule):
        return _describe_text(module, data)
    if isinstance(module, SequenceArrays):
        module.setup("validate")
        scales = {key: getattr(module.input, key).tolist() for key in ("mean", "std")}
        return {"kind": "frames", **scales}, {}
    if not hasattr(module, "eval_view"):
        return stated(view), {}
    return _describe_view(module, view or {}), {}


def stated(view: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The `preprocessing` of images of which `size`, perhaps `mean` and `std` are known."""
    return {"range": [0.0, 1.0], **view} if view else None


def _describe_text(module: TextDataModule, data: dict[str, Any]) -> tuple[dict[str, Any], dict]:
    about = {"kind": "text", "max_length": module.max_length}
    if not isinstance(module.tokenizer, WordPiece):
        return {**about, "tokenizer": data["init_args"]["tokenizer"]}, {}
    module.setup("validate")  # trains it
    return about, {TOKENIZER: module.tokenizer.to_json()}


def _describe_view(module: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the data module's evaluation view, and before them those given."""
    if "size" not in given:
        module.setup("validate")  # a folder's view has the size of its images
    view = module.eval_view
    kept: dict[str, Any] = {"range": [0.0, 1.0], "size": view.size, "space": view.space}
    for key in ("mean", "std"):
        value = getattr(view, key)
        if value is not None:
            kept[key] = value.flatten().tolist() if isinstance(value, Tensor) else list(value)
    if view.fraction is not None:
        kept |= {"fraction": view.fraction, "interpolation": view.interpolation}
    elif view.resize is not None:
        kept |= {"resize": view.resize, "interpolation": view.interpolation}
    return kept | dict(given)
