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
from typing import Any, cast

from lightning import LightningModule
from torch import nn

from sslzoo.eval.classifier import fill
from sslzoo.methods import SSLMethod
from sslzoo.zoo.building import build_backbone, complete, refuse_unknown_classes
from sslzoo.zoo.card import Card
from sslzoo.zoo.converters import convert
from sslzoo.zoo.preprocessing import preprocessor
from sslzoo.zoo.reading import read
from sslzoo.zoo.weights_file import Found, locate


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
        saved, _ = convert(saved, layout, str(path))
    if backbone is None:
        if card is None:
            raise ValueError(
                f"{str(path)!r} has no card beside it: pass backbone=, the module that it fills"
            )
        backbone = build_backbone(card.backbone)
    fill(backbone, complete(saved, backbone, str(path)), str(path))
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
