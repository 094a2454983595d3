"""Saving: an encoder as safetensors with its card beside it, whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from sslzoo.atomic_write import atomic_write
from sslzoo.trust import LOADERS, fill, read_config
from sslzoo.zoo.build import build_backbone, complete, under
from sslzoo.zoo.cache import home, unwritable
from sslzoo.zoo.card import Card
from sslzoo.zoo.catalog import card_named, entries
from sslzoo.zoo.converters import convert
from sslzoo.zoo.load import load
from sslzoo.zoo.preprocess import (
    TOKENIZER,
    describe,
    of_checkpoint,
    vocabulary,
    with_view,
)
from sslzoo.zoo.safe_read import read
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
    trust: bool = False,
) -> Card:
    """Write weights and card, and load them again.

    Args:
        encoder: what the card is of.
        card: without hash and features.
        folder: where both go, under the card's name.
        dtype: of the floats.
        metadata: see `save`.
        trust: see `load`.

    Returns:
        The card with the file's hash and the features of the fixed input.

    Raises:
        ValueError: the class on the card does not take the weights; nothing is left.
    """
    path = folder / card.file
    beside = path.with_suffix(".json")
    if path.exists() or beside.exists():
        raise ValueError(f"{path} is there already: take another name, or remove it and its card")
    with _made(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".adding-") as name:
        part = Path(name) / card.file
        try:
            digest = save(encoder, part, dtype, metadata)
            card = dataclasses.replace(card, sha256=digest, dtype=dtype)
            atomic_write(part.with_suffix(".json"), card.to_json())
            card = dataclasses.replace(
                card, features=fixed_features(load(str(part), trust=trust), card)
            )
            part.with_suffix(".json").write_text(card.to_json())
        except (ValueError, OSError) as error:  # it names the files where they will not be
            raise type(error)(str(error).replace(name, str(folder))) from error
        try:
            os.replace(part, path)
            os.replace(part.with_suffix(".json"), beside)
        except BaseException:
            path.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)
            raise
    return card


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder, and take it away again where what follows fails."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not folder.is_relative_to(home()):
                raise
            raise unwritable(folder / "card", error.strerror or str(error)) from None
        yield
    except BaseException:
        for path in new:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def add_run(
    run: Path,
    name: str,
    data: str,
    license: str,
    folder: Path | None = None,
    dtype: Dtype = "float32",
    view: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    trust: bool = False,
) -> Card:
    """Make an entry of a run of the command, which then loads by its name.

    Args:
        run: its folder, runs/<config>/version_N.
        name: of the entry.
        data: what it was trained on, in words.
        license: of the weights.
        folder: where weights and card go; None: the user's own entries.
        dtype: of the floats.
        view: `size`, `mean`, `std` and `channels` of the evaluation's images, where neither the
            checkpoint nor the run's data says them; what is given here counts.
        checkpoint: None: the run's last.
        trust: see `load`; also of the config's data, where a checkpoint of version 0.1 does not
            say what its encoder expects.

    Raises:
        FileNotFoundError: the run has no config or no checkpoint.
        ValueError: it does not load, its backbone is not the encoder, its text has changed, the
            name is not one, or there is an entry of it. Nothing is left.
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
    config = read_config(config_path)
    method, backbone = _named(config, config_path)
    saved = read(checkpoint)
    encoder = _trained(checkpoint, method, trust)
    preprocessing, metadata = _preprocessing(
        saved, config.get("data"), view, str(config_path), trust
    )
    epoch, seed = saved.get("epoch"), config.get("seed_everything")
    card = Card(
        name=name,
        file=f"{name}.safetensors",
        method=method,
        backbone=_backbone(backbone),
        num_features=_width(encoder, f"the encoder of {method}"),
        data=data,
        preprocessing=preprocessing,
        license={"code": "MIT", "weights": license},
        recipe=str(config_path),
        epochs=epoch + 1 if isinstance(epoch, int) else None,
        seeds=[seed] if type(seed) is int else [],
        protocol="the run's last validation",
        score=_scores(run / "metrics.csv"),
    )
    return save_with_card(encoder, card, folder or home() / "entries", dtype, metadata, trust)


def _named(config: dict[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """The class of a run's method, and its backbone's `class_path` and `init_args`."""
    found: dict[str, Any] = {}
    for keys in (("model", "class_path"), ("model", "init_args", "backbone", "class_path")):
        value: Any = config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str):
            raise ValueError(
                f"{path} names no {'.'.join(keys)}, so it does not say what the encoder is: "
                "--backbone does, and --prefix which tensors of the checkpoint are its"
            )
        found[keys[-2]] = value
    return found["model"], config["model"]["init_args"]["backbone"]


def _trained(checkpoint: Path, method: str, trust: bool) -> nn.Module:
    """The encoder of a checkpoint of the command."""
    try:
        return load(str(checkpoint), trust=trust).eval()
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # whatever the constructor of a user's own method raises
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{checkpoint} holds no {method} that can be built: {line}") from error


def _width(encoder: nn.Module, what: str) -> int:
    width = getattr(encoder, "num_features", None)
    if not isinstance(width, int):
        raise ValueError(
            f"a backbone with num_features wanted, {what} is a {type(encoder).__name__} and has "
            f"{width!r}"
        )
    return width


def _preprocessing(
    saved: Any,
    data: Any,
    view: Mapping[str, Any] | None,
    where: str = "",
    trust: bool = False,
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """What the encoder expects: as the checkpoint says, else the run's data, else the user."""
    preprocessing, metadata = of_checkpoint(saved)
    if preprocessing is not None or not isinstance(data, dict):
        return with_view(preprocessing, view), metadata
    preprocessing, metadata = describe(data, view, where, trust)
    _check_vocabulary(saved, metadata.get(TOKENIZER))
    return preprocessing, metadata


def add_checkpoint(
    checkpoint: Path,
    backbone: dict[str, Any],
    name: str,
    data: str,
    license: str,
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
        license: see there.
        folder: see there.
        dtype: see there.
        view: `size`, `mean`, `std` and `channels` of its images; None: as a checkpoint of the
            command says, else the entry has no `preprocess`.
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
    width = _width(encoder, str(backbone))
    state = (
        under(saved, prefix, str(checkpoint))
        if layout is None
        else convert(saved, layout, str(checkpoint))[0]
    )
    fill(encoder, complete(state, encoder, str(checkpoint)), str(checkpoint))
    preprocessing, metadata = _preprocessing(saved, None, view)
    named = saved.get("hyper_parameters") if isinstance(saved, dict) else None
    class_path = named.get("_class_path") if isinstance(named, dict) else None
    card = Card(
        name=name,
        file=f"{name}.safetensors",
        method=method or class_path or "unknown",
        backbone=_backbone(backbone),
        num_features=width,
        data=data,
        preprocessing=preprocessing,
        license={"code": "unknown", "weights": license},
        epochs=_epochs_begun(saved),
    )
    return save_with_card(encoder, card, folder or home() / "entries", dtype, metadata, True)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # a file's name, and no pattern of names


def _check_new(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a name must have letters, digits, '.', '_' and '-' alone, begin with a letter or a "
            f"digit, and have at most 200 of them, got {name!r}"
        )
    if name in entries():
        raise ValueError(f"there is an entry {name!r} already: take another name")


def _epochs_begun(saved: Any) -> int | None:
    """Of a checkpoint of Lightning's, whose `epoch` is one more behind the last epoch."""
    try:
        return int(saved["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"])
    except (KeyError, TypeError):
        return None


def _backbone(config: dict[str, Any]) -> dict[str, Any]:
    """Class path and arguments; of an entry from which training started, that entry's."""
    if config["class_path"] in LOADERS:
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
        try:
            with metrics.open() as file:
                for row in csv.DictReader(file):
                    for name, text in row.items():
                        if name and name.startswith("val/") and text:
                            last[name] = float(text)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{metrics} does not hold the metrics of a run: {error}") from None
    return last
