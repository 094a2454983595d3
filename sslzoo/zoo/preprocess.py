"""Preprocessing: what makes of samples what an encoder takes, by the card's kind of data."""

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

TOKENIZER = "tokenizer"  # in the metadata of weights: the JSON of a `WordPiece`


def preprocessor(
    preprocessing: Mapping[str, Any] | None,
    tokenizer: str | None = None,
    where: str = "the card",
    trust: bool = False,
) -> Callable[[Any], Any] | None:
    """What `encoder.preprocess` is; None where nothing is known.

    Args:
        preprocessing: of a card (`Card.preprocessing`) or of a checkpoint (`of_checkpoint`).
        tokenizer: the JSON of a `WordPiece`, wanted by an encoder of text whose preprocessing
            names no tokenizer.
        where: it is from, for errors.
        trust: see `sslzoo.load`.

    Raises:
        ValueError: it names no class that there is, or an encoder of text has no tokenizer.
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
            "an encoder of text has no tokenizer in its metadata, and its preprocessing names none"
        )
    return WordPiece.from_json(text)


def tokenizer_json(file: Path) -> str | None:
    """The tokenizer in the metadata of weights, None where there is none."""
    if file.suffix != ".safetensors":
        return None
    with safe_open(file, "pt") as opened:
        return (opened.metadata() or {}).get(TOKENIZER)


def of_checkpoint(saved: Any) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """The preprocessing that a run's data module left in its checkpoint.

    Args:
        saved: what `reading.read` gave.

    Returns:
        The `preprocessing` of a card, and the metadata of the weights (a tokenizer). The first is
        None where the checkpoint is of version 0.1, or its data module does not say it.

    Raises:
        ValueError: it is not one that a card could have.
    """
    for state in _data_states(saved):
        about = state.get("preprocessing")
        if isinstance(about, dict):
            for wrong in complaints_of_preprocessing(about):
                raise ValueError(f"the data module's state in the checkpoint {wrong}")
            text = state.get("tokenizer_json")
            return about, {TOKENIZER: text} if isinstance(text, str) else {}
    return None, {}


def vocabulary(saved: Any) -> str | None:
    """The digest of the tokenizer that a Lightning checkpoint was trained with, if it had one."""
    return next((s["tokenizer"] for s in _data_states(saved) if "tokenizer" in s), None)


_NOT_OF_DATA = {"state_dict", "hyper_parameters", "datamodule_hyper_parameters", "callbacks"}


def _data_states(saved: Any) -> list[dict[str, Any]]:
    """What of a Lightning checkpoint may be a data module's state, which has its class's name."""
    parts = saved.items() if isinstance(saved, Mapping) else ()
    return [part for key, part in parts if key not in _NOT_OF_DATA and isinstance(part, dict)]


def describe(
    data: dict[str, Any],
    view: Mapping[str, Any] | None = None,
    where: str = "the config",
    trust: bool = False,
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """What `of_checkpoint` gives, of a run whose checkpoint does not say it, from its data.

    Args:
        data: the `data` of the run's config.
        view: see `with_view`; with a `size`, images need not be at hand.
        where: the config, for errors.
        trust: see `sslzoo.load`.

    Raises:
        ValueError: the data cannot be built, is not where the config says, or has no images to
            have a view.
    """
    module = _build_data(data, where, trust)
    if not view or "size" not in view:
        _read(module)  # a vocabulary, the deviation of numbers, whether images have one size
    about, given = None, data.get("init_args") or {}
    if isinstance(module, SampleDataModule):
        about = module.preprocessing()
    elif isinstance(getattr(module, "eval_view", None), EvalView):
        about = {"range": [0.0, 1.0], **module.eval_view.arguments()}
    if about is None and isinstance(module, AudioDataModule):  # transforms of the user's own
        window = {} if module.eval_window is None else {"window": module.eval_window}
        about = {"kind": "waveform", "rate": module.rate, **window, "transform": given["transform"]}
    if about is None and isinstance(module, TextDataModule):
        about = {"kind": "text", "max_length": module.max_length, "tokenizer": given["tokenizer"]}
    tokenizer = getattr(module, "tokenizer", None)
    trained = isinstance(module, TextDataModule) and isinstance(tokenizer, WordPiece)
    made = with_view(about, view)
    return made, {TOKENIZER: module.tokenizer.to_json()} if trained else {}


def _build_data(data: dict[str, Any], where: str, trust: bool) -> Any:
    """The data module of a run's config."""
    try:
        if trust:
            return build_trusted(data, LightningDataModule)
        return build(data, LightningDataModule, where)
    except ValueError:
        raise
    except Exception as error:  # whatever the constructor of a user's own raises
        raise ValueError(f"the run's data module cannot be built: {_line(error)}") from error


def _read(module: Any) -> None:
    try:
        module.setup("validate")
    except OSError:
        raise
    except Exception as error:  # likewise
        raise ValueError(f"the run's data cannot be read: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def with_view(
    preprocessing: dict[str, Any] | None, view: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Preprocessing of images, in which what the user says of them counts.

    Args:
        preprocessing: None: not known.
        view: some of `size`, `mean`, `std` and `channels`.

    Raises:
        ValueError: it is not of images.
    """
    if not view:
        return preprocessing
    kept = dict(preprocessing or {"range": [0.0, 1.0]})
    if kept.get("kind", "image") != "image":
        raise ValueError(f"{sorted(view)} are of images, the run was trained on {kept['kind']}")
    if "size" in view:
        kept = {key: value for key, value in kept.items() if key not in ("resize", "fraction")}
    return kept | dict(view)
