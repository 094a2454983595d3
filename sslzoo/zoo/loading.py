"""Loading: an encoder of the zoo, of a file or of an address, in one line.

    encoder = sslzoo.load("simclr-small_resnet-cifar10jpeg")
    features = encoder(encoder.preprocess(images))

In a YAML it is a backbone, to train further from:

    backbone:
      class_path: sslzoo.load
      init_args: {name: simclr-small_resnet-cifar10jpeg, train: true}
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from lightning import LightningModule
from torch import nn

from sslzoo.eval.classifier import fill
from sslzoo.methods import SSLMethod
from sslzoo.zoo.building import build_backbone, complete, refuse_unknown_classes
from sslzoo.zoo.cache import ANY, check, fetch, is_url, place
from sslzoo.zoo.card import Card, read_card
from sslzoo.zoo.converters import convert
from sslzoo.zoo.listing import card_named, entries, local_file, sources
from sslzoo.zoo.preprocessing import preprocessor
from sslzoo.zoo.reading import read


class Found(NamedTuple):
    """A file of weights.

    Args:
        path: of the file; of a TensorFlow checkpoint the prefix of its files.
        card: what is known about it, None for nothing.
        ours: whether it is on this machine by its user's will, so that its classes are trusted.
    """

    path: Path
    card: Card | None
    ours: bool


def load(
    name: str,
    backbone: nn.Module | None = None,
    layout: str | None = None,
    sha256: str | None = None,
    file: str | None = None,
    whole: bool = False,
    train: bool = False,
) -> nn.Module:
    """An encoder with its weights, an nn.Module (B, ...) -> (B, num_features).

    Where there is a card it is `encoder.card`, and `encoder.preprocess` makes of samples what the
    encoder takes: of images (B, C, H, W), uint8 or in [0, 1]; of waveforms (B, L), int16 or in
    [-1, 1], or a list of such; of a list of sentences; of sequences (B, T, F). A licence that is
    not for commercial use is printed.

    Args:
        name: of an entry (`sslzoo zoo list`); or a path or an address (https://, hf://OWNER/
            REPOSITORY/PATH, file://) of weights: .safetensors with its card beside it, a Lightning
            checkpoint of ours, or any checkpoint whose layout is given.
        backbone: what to fill, where there is no card to name it.
        layout: how the encoder stands in the file, one of `sslzoo.zoo.LAYOUTS`: "lightly",
            "solo_learn", "torchvision", ...; None: as the card says, or as we save.
        sha256: of the file, enforced besides what the card says; "any" for a file from elsewhere
            whose hash nobody published.
        file: the entry's file where you have it already.
        whole: the whole method of a Lightning checkpoint of ours, not the encoder alone.
        train: in train mode, as training further wants it (Lightning keeps the mode that it
            finds); False: in eval mode.

    Raises:
        ValueError: there is no such entry; the file is damaged, has another hash, holds code, or
            does not fit the class.
        OSError: it cannot be found or fetched.
    """
    found = locate(name, sha256, file)
    module, card = _module(found, backbone, layout, whole, train)
    if card is not None:
        _print_licence(card)
        about: Any = module
        about.card = card
        about.preprocess = preprocessor(card, found.path)
    return module.train(train)


def locate(name: str, sha256: str | None = None, file: str | None = None) -> Found:
    """The file that `load` would read, on this machine after this, its hash checked.

    Args:
        name: see `load`.
        sha256: see `load`.
        file: see `load`.

    Raises:
        ValueError: there is no such entry, or the hash is another one.
        OSError: it cannot be found or fetched.
    """
    if is_url(name):
        return _from_address(name, sha256)
    if name in entries():
        card = card_named(name)
        path = Path(file) if file is not None else local_file(card)
        if path is None:
            wanted = card.sha256 or sha256 if sha256 in (None, ANY) else sha256
            target = place(card.name, card.file)
            fetched = Found(fetch(sources(card), target, wanted, card.md5), card, True)
            return _checked(fetched, sha256)
        return _checked(Found(path, card, True), sha256)
    path = Path(name)
    if not path.is_file() and not Path(f"{name}.index").is_file():
        raise FileNotFoundError(_nowhere(name))
    beside = path.with_suffix(".json")
    known = path.suffix == ".safetensors" and beside.is_file()
    return _checked(Found(path, read_card(beside) if known else None, True), sha256)


def _nowhere(name: str) -> str:
    try:
        card_named(name)
    except ValueError as error:
        return str(error)
    return f"no file at {name!r}"


def _checked(found: Found, sha256: str | None) -> Found:
    path, card, _ = found
    if path.is_file():
        for wanted in {sha256, card.sha256 if card else None} - {None, ANY}:
            check(path, wanted)
        if card is not None and card.md5 is not None:
            check(path, None, card.md5)
    return found


def _from_address(url: str, sha256: str | None) -> Found:
    """Fetch weights, and before them the card beside them, whose hash they must have."""
    name = Path(urlsplit(url).path).name
    target, beside = place(url, name), place(url, f"{Path(name).stem}.json")
    card = None
    if name.endswith(".safetensors") and (beside.is_file() or not target.is_file()):
        try:
            card = read_card(fetch([f"{url.removesuffix('.safetensors')}.json"], beside, ANY))
        except FileNotFoundError:
            card = None  # weights alone
    if card is not None:
        refuse_unknown_classes({"of": [card.backbone, card.preprocessing]}, url)
        sha256 = card.sha256 if sha256 in (None, ANY) else sha256
    found = Found(fetch([url], target, sha256), card, url.startswith("file:"))
    return _checked(found, None)


def _module(
    found: Found, backbone: nn.Module | None, layout: str | None, whole: bool, train: bool
) -> tuple[nn.Module, Card | None]:
    path, card, ours = found
    saved = read(path)
    layout = layout or (card.layout if card else None)
    if layout is None and isinstance(saved, dict) and "pytorch-lightning_version" in saved:
        method = _method(path, saved, ours)
        return (method if whole else _encoder_of(method, path, train)), card
    if whole:
        raise ValueError(
            f"{str(path)!r} holds no whole method: a Lightning checkpoint of ours does"
        )
    if layout is not None:
        saved, _ = convert(saved, layout)
    if backbone is None:
        if card is None:
            raise ValueError(
                f"{str(path)!r} has no card beside it: pass backbone=, the module that it fills"
            )
        backbone = build_backbone(card.backbone)
    fill(backbone, complete(saved, backbone), str(path))
    width = getattr(backbone, "num_features", None)
    if card is not None and width != card.num_features:
        raise ValueError(
            f"{type(backbone).__name__} gives {width} features, the card of {card.name!r} says "
            f"{card.num_features}"
        )
    return backbone, card


def _method(path: Path, saved: dict[str, Any], ours: bool) -> LightningModule:
    """The method of a checkpoint of the command; its class is imported."""
    named = saved.get("hyper_parameters", {})
    class_path = named.get("_class_path")
    if class_path is None:
        raise ValueError(
            f"{str(path)!r} does not name its class, as checkpoints of the command do: use "
            "YourMethod.load_from_checkpoint, or give layout= and backbone="
        )
    if not ours:
        refuse_unknown_classes(named, str(path))
    try:
        importlib.import_module(class_path.rpartition(".")[0])
    except ImportError as error:
        raise ValueError(f"{str(path)!r} holds a {class_path}: {error}") from None
    with warnings.catch_warnings():
        # Lightning 2.6 calls methods that jsonargparse 4.53 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        return LightningModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def _encoder_of(method: LightningModule, path: Path, train: bool) -> nn.Module:
    give = getattr(method, "encoder", None)
    if not callable(give):
        raise ValueError(f"{str(path)!r} holds a {type(method).__name__}, which has no encoder()")
    encoder: nn.Module = give()
    if train and isinstance(method, SSLMethod):
        for student, teacher in method.teacher_pairs():
            if teacher is encoder:  # frozen, and without drop path, as a teacher is
                _train_as(encoder, student)
    return encoder


def _train_as(teacher: nn.Module, student: nn.Module) -> None:
    """Let the teacher's parameters train, and its paths drop, where the student's do."""
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    for mine, his in zip(teacher.modules(), student.modules(), strict=True):
        if hasattr(his, "drop_prob"):
            cast(Any, mine).drop_prob = his.drop_prob


def _print_licence(card: Card) -> None:
    if card.non_commercial:
        print(f"{card.name}: weights under {card.licence['weights']}", file=sys.stderr)
