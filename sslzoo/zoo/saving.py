"""Saving: an encoder as safetensors with its card beside it, whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from sslzoo.trust import fill
from sslzoo.whole import write_whole
from sslzoo.zoo.building import build_backbone, complete
from sslzoo.zoo.cache import home
from sslzoo.zoo.card import Card
from sslzoo.zoo.converters import convert
from sslzoo.zoo.listing import card_named, entries
from sslzoo.zoo.loading import load
from sslzoo.zoo.preprocessing import TOKENIZER, describe, stated, vocabulary
from sslzoo.zoo.reading import read
from sslzoo.zoo.verifying import fixed_features

Dtype = Literal["float32", "float16"]


def save(
    encoder: nn.Module,
    path: Path,
    dtype: Dtype = "float32",
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write an encoder's state; the sha256 of the file.

    Args:
        encoder: any module.
        path: of the .safetensors.
        dtype: of its floats.
        metadata: text that goes into the file, such as a tokenizer.

    Raises:
        ValueError: a value is not finite in that precision; nothing is written.
        OSError: it cannot be written; nothing is left.
    """
    state = {}
    for name, value in encoder.state_dict().items():
        kept = value.detach().cpu()
        if kept.is_floating_point():
            kept = kept.half() if dtype == "float16" else kept.float()
            if not kept.isfinite().all():
                raise ValueError(f"{name} has values that are not finite in {dtype}")
        state[name] = kept.contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        save_file(state, part, metadata={"format": "pt", **(metadata or {})})
        part.chmod(0o644)
        part.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_with_card(
    encoder: nn.Module,
    card: Card,
    folder: Path,
    dtype: Dtype = "float32",
    metadata: Mapping[str, str] | None = None,
) -> Card:
    """Write weights and card, and load them again.

    Args:
        encoder: what the card is of.
        card: without hash and features.
        folder: where both go, under the card's name.
        dtype: of the floats.
        metadata: see `save`.

    Returns:
        The card with the file's hash and the features of the fixed input.

    Raises:
        ValueError: the class on the card does not take the weights; nothing is left.
    """
    path = folder / card.file
    beside = path.with_suffix(".json")
    if path.exists() or beside.exists():
        raise ValueError(f"{path} is there already: take another name, or remove it and its card")
    try:
        card = dataclasses.replace(card, sha256=save(encoder, path, dtype, metadata), dtype=dtype)
        write_whole(beside, card.to_json())
        loaded = load(str(path))
        card = dataclasses.replace(card, features=fixed_features(loaded, card))
        write_whole(beside, card.to_json())
    except BaseException:
        path.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
        raise
    return card


def add_run(
    run: Path,
    name: str,
    data: str,
    licence: str,
    folder: Path | None = None,
    dtype: Dtype = "float32",
    view: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
) -> Card:
    """Make an entry of a run of the command, which then loads by its name.

    Args:
        run: its folder, runs/<config>/version_N.
        name: of the entry.
        data: what it was trained on, in words.
        licence: of the weights.
        folder: where weights and card go; None: the user's own entries.
        dtype: of the floats.
        view: `size`, `mean` and `std` of the evaluation's images, where the run's data does not say
            them or is not at hand.
        checkpoint: None: the run's last.

    Raises:
        FileNotFoundError: the run has no config or no checkpoint.
        ValueError: it does not load, its backbone is not the encoder, its text has changed, or
            there is an entry of that name.
    """
    _check_new(name)
    config_path = run / "config.yaml"
    checkpoint = checkpoint or run / "checkpoints" / "last.ckpt"
    for path in (config_path, checkpoint):
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(run)!r} is not a run of the command: no {path}; of any other checkpoint "
                "--backbone says what it fills"
            )
    config = yaml.safe_load(config_path.read_text())
    method: Any = load(str(checkpoint), whole=True)
    encoder = method.encoder().eval()
    saved = read(checkpoint)
    preprocessing, metadata = describe(config["data"], view)
    _check_vocabulary(saved, metadata.get(TOKENIZER))
    card = Card(
        name=name,
        file=f"{name}.safetensors",
        method=config["model"]["class_path"],
        backbone=_backbone(config["model"]["init_args"]["backbone"]),
        num_features=encoder.num_features,
        data=data,
        preprocessing=preprocessing,
        licence={"code": "MIT", "weights": licence},
        recipe=str(config_path),
        epochs=int(saved["epoch"]) + 1,
        seeds=[int(config["seed_everything"])],
        protocol="the run's last validation",
        score=_scores(run / "metrics.csv"),
    )
    return save_with_card(encoder, card, folder or home() / "entries", dtype, metadata)


def add_checkpoint(
    checkpoint: Path,
    backbone: dict[str, Any],
    name: str,
    data: str,
    licence: str,
    folder: Path | None = None,
    dtype: Dtype = "float32",
    view: Mapping[str, Any] | None = None,
    prefix: str = "backbone.",
    layout: str | None = None,
    method: str | None = None,
) -> Card:
    """Make an entry of a checkpoint of any other training.

    Args:
        checkpoint: a file of Lightning's, or any that `reading.read` knows.
        backbone: `class_path` and `init_args` of what it fills.
        name: see `add_run`, as the next four.
        data: see there.
        licence: see there.
        folder: see there.
        dtype: see there.
        view: `size`, `mean` and `std` of its images; None: the entry has no `preprocess`.
        prefix: what the names of the encoder's tensors begin with; all others are left out.
        layout: instead of the prefix, one of `LAYOUTS`.
        method: what trained it; None: as the file says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not fit the backbone, or there is an entry of that name.
    """
    _check_new(name)
    saved = read(checkpoint)
    encoder = build_backbone(backbone, trust=True).eval()
    width = getattr(encoder, "num_features", None)
    if not isinstance(width, int):
        raise ValueError(f"a backbone with num_features wanted, {backbone} has {width!r}")
    state = _under(saved, prefix) if layout is None else convert(saved, layout, str(checkpoint))[0]
    fill(encoder, complete(state, encoder, str(checkpoint)), str(checkpoint))
    own = saved if isinstance(saved, dict) else {}
    card = Card(
        name=name,
        file=f"{name}.safetensors",
        method=method or (own.get("hyper_parameters") or {}).get("_class_path", "unknown"),
        backbone=_backbone(backbone),
        num_features=width,
        data=data,
        preprocessing=stated(view),
        licence={"code": "unknown", "weights": licence},
        epochs=_epochs_begun(saved),
    )
    return save_with_card(encoder, card, folder or home() / "entries", dtype)


def _check_new(name: str) -> None:
    if name in entries():
        raise ValueError(f"there is an entry {name!r} already: take another name")


def _epochs_begun(saved: Any) -> int | None:
    """Of a checkpoint of Lightning's, whose `epoch` is one more behind the last epoch."""
    try:
        return int(saved["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"])
    except (KeyError, TypeError):
        return None


def _under(saved: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin so, without that beginning."""
    state = saved.get("state_dict", saved) if isinstance(saved, Mapping) else saved
    named = state if isinstance(state, Mapping) else {}
    kept = {name.removeprefix(prefix): v for name, v in named.items() if name.startswith(prefix)}
    if not kept or not all(isinstance(value, Tensor) for value in kept.values()):
        raise ValueError(f"tensors under {prefix!r} wanted, the file has {list(named)[:5]}")
    return kept


def _backbone(config: dict[str, Any]) -> dict[str, Any]:
    """Class path and arguments; of an entry from which training started, that entry's."""
    if config["class_path"] in ("sslzoo.load", "sslzoo.zoo.load", "sslzoo.zoo.loading.load"):
        return card_named(config["init_args"]["name"]).backbone
    return {"class_path": config["class_path"], "init_args": config.get("init_args") or {}}


def _check_vocabulary(saved: Mapping[str, Any], tokenizer: str | None) -> None:
    """Refuse a vocabulary that the run was not trained with."""
    digest = vocabulary(saved)
    if tokenizer is None or digest is None:
        return
    now = hashlib.sha256(tokenizer.encode()).hexdigest()
    if now != digest:
        raise ValueError(
            "the vocabulary that the run's data gives is not the run's (its digest is "
            f"{now[:12]}, the run's {digest[:12]}): has the text changed?"
        )


def _scores(metrics: Path) -> dict[str, float]:
    """The last value of every validation metric that is a share."""
    return {name: value for name, value in last_validation(metrics).items() if 0 <= value <= 1}


def last_validation(metrics: Path) -> dict[str, float]:
    """The last value of every validation metric in a run's metrics.csv."""
    last: dict[str, float] = {}
    if metrics.is_file():
        with metrics.open() as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if name and name.startswith("val/") and text:
                        last[name] = float(text)
    return last
