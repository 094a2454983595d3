"""Preprocessing: the transform of samples that an encoder expects, by the card's kind of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from safetensors import safe_open

from sslzoo.data import (
    AudioDataModule,
    FrameInput,
    SampleDataModule,
    TextDataModule,
    TextInput,
    TextTokenizer,
    WaveformInput,
    WordPiece,
)
from sslzoo.data.inputs import AudioViews
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.trust import build, build_trusted
from sslzoo.zoo.card import complaints_of_preprocessing, image_view

TOKENIZER = "tokenizer"  # key in the weights' metadata: the JSON of a `WordPiece`


def preprocessor(
    preprocessing: Mapping[str, Any] | None,
    tokenizer: str | None = None,
    where: str = "the card",
    trust: bool = False,
) -> Callable[[Any], Any] | None:
    """Build `encoder.preprocess`; None if the preprocessing is unknown.

    Args:
        preprocessing: from a card (`Card.preprocessing`) or a checkpoint (`of_checkpoint`).
        tokenizer: the JSON of a `WordPiece`, required by a text encoder whose preprocessing
            names no tokenizer.
        where: origin of the preprocessing, for errors.
        trust: see `sslzoo.load`.

    Raises:
        ValueError: it names a class that does not exist, or a text encoder has no tokenizer.
    """
    about = dict(preprocessing or {})
    make = build_trusted if trust else partial(build, where=where)
    match about.pop("kind", "image") if about else None:
        case "image":
            return image_view(about)
        case "waveform":
            return WaveformInput(make(about.pop("transform"), AudioViews), **about)
        case "text":
            named = about.get("tokenizer")
            read = _trained(tokenizer) if named is None else make(named, TextTokenizer)
            if named is not None:
                read.prepare([])
            return TextInput(read, about["max_length"])
        case "frames":
            return FrameInput(**about)
    return None


def _trained(text: str | None) -> TextTokenizer:
    if text is None:
        raise ValueError(
            "an encoder of text must have a tokenizer in its metadata or preprocessing, got none"
        )
    return WordPiece.from_json(text)


def tokenizer_json(file: Path) -> str | None:
    """The tokenizer in the weights' metadata; None if there is none."""
    if file.suffix != ".safetensors":
        return None
    with safe_open(file, "pt") as opened:
        return (opened.metadata() or {}).get(TOKENIZER)


def of_checkpoint(saved: Any) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Read the preprocessing that a run's data module saved in its checkpoint.

    Args:
        saved: the result of `safe_read.read`.

    Returns:
        The card's `preprocessing`, and the weights' metadata (a tokenizer). The first is None if
        the checkpoint is from version 0.1, or its data module does not save it.

    Raises:
        ValueError: the preprocessing is not valid in a card.
    """
    for state in _data_states(saved):
        about = state.get("preprocessing")
        if isinstance(about, dict):
            for wrong in complaints_of_preprocessing(about):
                raise ValueError(f"the data module's state in the checkpoint: {wrong}")
            text = state.get("tokenizer_json")
            return about, {TOKENIZER: text} if isinstance(text, str) else {}
    return None, {}


def vocabulary(saved: Any) -> str | None:
    """Digest of the tokenizer that a Lightning checkpoint was trained with; None without one."""
    return next((s["tokenizer"] for s in _data_states(saved) if "tokenizer" in s), None)


_NOT_OF_DATA = {"state_dict", "hyper_parameters", "datamodule_hyper_parameters", "callbacks"}


def _data_states(saved: Any) -> list[dict[str, Any]]:
    """Entries of a Lightning checkpoint that may be a data module's state, under its class name."""
    parts = saved.items() if isinstance(saved, Mapping) else ()
    return [part for key, part in parts if key not in _NOT_OF_DATA and isinstance(part, dict)]


def describe(
    data: dict[str, Any],
    view: Mapping[str, Any] | None = None,
    where: str = "the config",
    trust: bool = False,
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Derive the result of `of_checkpoint` from a run's data, for checkpoints without it.

    Args:
        data: the `data` section of the run's config.
        view: see `with_view`; if it has a `size`, the images need not be available.
        where: the config, for errors.
        trust: see `sslzoo.load`.

    Raises:
        ValueError: the data cannot be built, is not at the config's path, or has a view but no
            images.
    """
    module = _build_data(data, where, trust)
    if not view or "size" not in view:
        _read(module)  # reads a vocabulary, the standard deviation, whether images have one size
    about, given = None, data.get("init_args") or {}
    if isinstance(module, SampleDataModule):
        about = module.preprocessing()
    elif isinstance(getattr(module, "eval_view", None), EvalView):
        about = {"range": [0.0, 1.0], **module.eval_view.arguments()}
    if about is None and isinstance(module, AudioDataModule):  # the user's own transforms
        window = {} if module.eval_window is None else {"window": module.eval_window}
        about = {"kind": "waveform", "rate": module.rate, **window, "transform": given["transform"]}
    if about is None and isinstance(module, TextDataModule):
        about = {"kind": "text", "max_length": module.max_length, "tokenizer": given["tokenizer"]}
    tokenizer = getattr(module, "tokenizer", None)
    trained = isinstance(module, TextDataModule) and isinstance(tokenizer, WordPiece)
    made = with_view(about, view)
    return made, {TOKENIZER: module.tokenizer.to_json()} if trained else {}


def _build_data(data: dict[str, Any], where: str, trust: bool) -> Any:
    """Build the data module of a run's config."""
    try:
        if trust:
            return build_trusted(data, LightningDataModule)
        return build(data, LightningDataModule, where)
    except ValueError:
        raise
    except Exception as error:  # a user's constructor may raise anything
        raise ValueError(f"the run's data module cannot be built: {_line(error)}") from error


def _read(module: Any) -> None:
    try:
        module.setup("validate")
    except OSError:
        raise
    except Exception as error:  # a user's setup may raise anything
        raise ValueError(f"the run's data cannot be read: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def with_view(
    preprocessing: dict[str, Any] | None, view: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Image preprocessing with the user's values overriding the recorded ones.

    Args:
        preprocessing: the recorded one; None: unknown.
        view: any of `size`, `mean`, `std` and `channels`.

    Raises:
        ValueError: the preprocessing is not for images.
    """
    if not view:
        return preprocessing
    kept = dict(preprocessing or {"range": [0.0, 1.0]})
    if kept.get("kind", "image") != "image":
        raise ValueError(f"{sorted(view)} must be omitted without images, got {kept['kind']}")
    if "size" in view:
        kept = {key: value for key, value in kept.items() if key not in ("resize", "fraction")}
    return kept | dict(view)
