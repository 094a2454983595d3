"""Save an encoder as safetensors together with its card, atomically."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import nn

from sslzoo.atomic_write import atomic_write, remove, replacing
from sslzoo.checks import check_num_features
from sslzoo.file_lock import acquire
from sslzoo.run_folder import RunFolder
from sslzoo.trust import LOADERS, fill
from sslzoo.zoo.build import build_backbone, complete, count_parameters, under
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
_ADDING, _LOCK = ".adding-", "lock"


def save(
    encoder: nn.Module,
    path: Path,
    dtype: Dtype = "float32",
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write an encoder's state and return the file's sha256.

    Args:
        encoder: any module.
        path: the .safetensors file.
        dtype: precision of the floating-point tensors.
        metadata: text stored in the file, such as a tokenizer.

    Raises:
        ValueError: a value is not finite in that precision; nothing is written.
        OSError: the file cannot be written; nothing is left.
    """
    state = {}
    for name, value in encoder.state_dict().items():
        kept = value.detach().cpu()
        if kept.is_floating_point():
            kept = kept.half() if dtype == "float16" else kept.float()
            if not kept.isfinite().all():
                raise ValueError(f"{name} must be finite in {dtype}, got NaN or infinity")
        state[name] = kept.contiguous().clone()
    with replacing(path) as part:
        save_file(state, part, metadata={"format": "pt", **(metadata or {})})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_with_card(
    encoder: nn.Module,
    card: Card,
    folder: Path,
    dtype: Dtype = "float32",
    metadata: Mapping[str, str] | None = None,
    trust: bool = False,
) -> Card:
    """Write weights and card, then verify them by loading.

    Args:
        encoder: the encoder that the card describes.
        card: its card, without hash and features.
        folder: destination of both files, which have the card's name.
        dtype: precision of the floating-point tensors.
        metadata: see `save`.
        trust: see `load`.

    Returns:
        The card with the file's hash and the features of the fixed input.

    Raises:
        ValueError: the weights do not fit the card's class; nothing is left.
    """
    path = folder / card.file
    beside = path.with_suffix(".json")
    if path.exists() or beside.exists():
        raise ValueError(
            f"the file must not exist yet, got {path}; use another name, or remove it and its card"
        )
    _remove_left_over(folder)
    with _made(folder), _temporary(folder) as name:
        part = Path(name) / card.file
        try:
            digest = save(encoder, part, dtype, metadata)
            card = dataclasses.replace(card, sha256=digest, dtype=dtype)
            atomic_write(part.with_suffix(".json"), card.to_json())
            card = dataclasses.replace(
                card, features=fixed_features(load(str(part), trust=trust), card)
            )
            atomic_write(part.with_suffix(".json"), card.to_json())
        except (ValueError, OSError) as error:  # its paths are those of the temporary folder
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
def _temporary(folder: Path) -> Iterator[str]:
    """Context manager of a temporary folder inside another one, locked by this process."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=_ADDING) as name:
        lock = acquire(Path(name) / _LOCK, {})
        assert lock is not None
        try:
            yield name
        finally:
            lock.release()


def _remove_left_over(folder: Path) -> None:
    """Remove the temporary folders of processes that were killed."""
    for left in folder.glob(f"{_ADDING}*"):
        with suppress(OSError):
            lock = acquire(left / _LOCK, {}) if (left / _LOCK).is_file() else None
            if lock is not None:
                if lock.is_real:
                    remove(left)
                lock.release()


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Context manager that creates a folder and removes it if the body fails."""
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
    """Add a run as a zoo entry, which can then be loaded by name.

    Args:
        run: the run directory, runs/<config>/version_N.
        name: name of the entry.
        data: description of the training data.
        license: license of the weights.
        folder: destination of weights and card; None: the user's own entries.
        dtype: precision of the floating-point tensors.
        view: `size`, `mean`, `std` and `channels` of the evaluation's images, if neither the
            checkpoint nor the run's data has them; values given here take precedence.
        checkpoint: the checkpoint to use; None: the run's last.
        trust: see `load`; it also applies to the config's data if a checkpoint of version 0.1
            lacks the preprocessing that its encoder expects.

    Raises:
        FileNotFoundError: the run has no config or no checkpoint.
        ValueError: it does not load, its backbone is not the encoder, its text has changed, the
            name is invalid, or the entry already exists. Nothing is left.
    """
    _check_new(name)
    files = RunFolder(run)
    config_path, checkpoint = files.config_file, checkpoint or files.checkpoint_file
    for path in (config_path, checkpoint):
        if not path.is_file():
            raise FileNotFoundError(
                f"a run directory must have {path}, got none in {str(run)!r}; for a checkpoint of "
                "other code, pass --backbone"
            )
    config = files.config()
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
        num_features=check_num_features(encoder, f"encoder of {method}"),
        parameters=count_parameters(encoder),
        data=data,
        preprocessing=preprocessing,
        license={"code": "MIT", "weights": license},
        recipe=str(config_path),
        epochs=epoch + 1 if isinstance(epoch, int) else None,
        seeds=[seed] if type(seed) is int else [],
        protocol="the run's last validation",
        score={k: v for k, v in files.last_validation().items() if 0 <= v <= 1},  # fractions
    )
    return save_with_card(encoder, card, folder or home() / "entries", dtype, metadata, trust)


def _named(config: dict[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """Class of a run's method, and its backbone's `class_path` and `init_args`."""
    found: dict[str, Any] = {}
    for keys in (("model", "class_path"), ("model", "init_args", "backbone", "class_path")):
        value: Any = config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str):
            raise ValueError(
                f"{path} must have {'.'.join(keys)}, got none; pass --backbone, and --prefix for "
                "its tensors in the checkpoint"
            )
        found[keys[-2]] = value
    return found["model"], config["model"]["init_args"]["backbone"]


def _trained(checkpoint: Path, method: str, trust: bool) -> nn.Module:
    """Load the encoder from a checkpoint of `sslzoo fit`."""
    try:
        return load(str(checkpoint), trust=trust).eval()
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # a user's constructor may raise anything
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{method} of {checkpoint} cannot be built: {line}") from error


def _preprocessing(
    saved: Any,
    data: Any,
    view: Mapping[str, Any] | None,
    where: str = "",
    trust: bool = False,
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Preprocessing that the encoder expects: from the checkpoint, the run's data or the user."""
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
    """Add a checkpoint from any other training as a zoo entry.

    Args:
        checkpoint: a Lightning checkpoint, or any file that `safe_read.read` accepts.
        backbone: `class_path` and `init_args` of the module that it fills.
        name: see `add_run`, as for the next four.
        data: see there.
        license: see there.
        folder: see there.
        dtype: see there.
        view: `size`, `mean`, `std` and `channels` of its images; None: as recorded in a checkpoint
            of `sslzoo fit`, otherwise the entry has no `preprocess`.
        prefix: prefix of the names of the encoder's tensors; all others are omitted.
        layout: one of `LAYOUTS`, instead of the prefix.
        method: the training method; None: as recorded in the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it does not fit the backbone, or an entry of that name exists.
    """
    _check_new(name)
    saved = read(checkpoint)
    encoder = build_backbone(backbone, trust=True).eval()
    width = check_num_features(encoder, "backbone")
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
        parameters=count_parameters(encoder),
        data=data,
        preprocessing=preprocessing,
        license={"code": "unknown", "weights": license},
        epochs=_epochs_begun(saved),
    )
    return save_with_card(encoder, card, folder or home() / "entries", dtype, metadata, True)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # a file's name, not a glob pattern


def _check_new(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "the name must be at most 200 letters, digits, '.', '_' and '-', beginning with a "
            f"letter or a digit, got {name!r}"
        )
    if name in entries():
        raise ValueError(f"the name must be new, got that of the existing entry {name!r}")


def _epochs_begun(saved: Any) -> int | None:
    """Epochs begun in a Lightning checkpoint, whose `epoch` is one more after the last epoch."""
    try:
        return int(saved["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"])
    except (KeyError, TypeError):
        return None


def _backbone(config: dict[str, Any]) -> dict[str, Any]:
    """Class path and arguments of the backbone, or of the entry that training started from."""
    if config["class_path"] in LOADERS:
        return card_named(config["init_args"]["name"]).backbone
    return {"class_path": config["class_path"], "init_args": config.get("init_args") or {}}


def _check_vocabulary(saved: Mapping[str, Any], tokenizer: str | None) -> None:
    """Check that the vocabulary is the one that the run was trained with."""
    digest = vocabulary(saved)
    if tokenizer is None or digest is None:
        return
    now = hashlib.sha256(tokenizer.encode()).hexdigest()
    if now != digest:
        raise ValueError(
            f"the tokenizer's digest must be that of the run, {digest[:12]}, got {now[:12]}; use "
            "the training text of the run"
        )
