"""Load an encoder from the zoo, a file or a URL in one line.

    encoder = sslzoo.load("simclr-small_resnet-cifar10jpeg")
    features = encoder(encoder.preprocess(images))

In a YAML config it is a backbone to continue training from:

    backbone:
      class_path: sslzoo.load
      init_args: {name: simclr-small_resnet-cifar10jpeg, train: true}
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning import LightningModule
from torch import Tensor, nn

from sslzoo.methods import SSLMethod
from sslzoo.trust import UntrustedError, fill, hyper_parameters, module_of
from sslzoo.zoo.build import build_backbone, complete, filled, under
from sslzoo.zoo.cache import is_url
from sslzoo.zoo.card import Card
from sslzoo.zoo.converters import LAYOUTS, convert
from sslzoo.zoo.preprocess import TOKENIZER, of_checkpoint, preprocessor, tokenizer_json
from sslzoo.zoo.safe_read import check_finite, read
from sslzoo.zoo.weights_file import locate


def load(
    name: str | os.PathLike[str],
    backbone: nn.Module | None = None,
    layout: str | None = None,
    sha256: str | None = None,
    file: str | os.PathLike[str] | None = None,
    whole: bool = False,
    train: bool = False,
    trust: bool = False,
    strict: bool = False,
) -> nn.Module:
    """Load an encoder with its weights, an nn.Module (B, ...) -> (B, num_features).

    If the preprocessing is known, `encoder.preprocess` turns samples into the encoder's input:
    images (B, C, H, W), uint8 or in [0, 1]; waveforms (B, L), int16 or in [-1, 1], or a list of
    them; a list of sentences; or sequences (B, T, F). If there is a card, it is `encoder.card`. A
    license that forbids commercial use is printed.

    The file is data: it may name only the classes of sslzoo, `torch.nn` and those that your program
    has imported, and only the encoder is built (docs/security.md).

    Args:
        name: an entry's name (`sslzoo zoo list`), or a path or URL (https://,
            hf://OWNER/REPOSITORY/PATH, file://) of weights: .safetensors with its card next to it,
            a Lightning checkpoint of ours, or any checkpoint whose layout is given.
        backbone: the module to fill if there is no card that names it; from a Lightning checkpoint
            of ours it takes the encoder, from a module that was built in Python the `backbone`.
        layout: layout of the encoder in the file, one of `sslzoo.zoo.LAYOUTS`: "lightly",
            "solo_learn", "torchvision", ...; None: the card's, or our own format.
        sha256: hash of the file, enforced in addition to the card's; None: if none is published,
            the hash of the first download is recorded and enforced from then on.
        file: the entry's file if you already have it.
        whole: return the whole method of a Lightning checkpoint of ours, not only the encoder.
        train: True: in train mode, for further training (Lightning keeps the mode that it
            finds); False: in eval mode.
        trust: whether the file may name any class that Python can import. These classes then run
            like your own code; use it only for your own files.
        strict: refuse to download a file without a published or given hash.

    Raises:
        ValueError: the entry does not exist; the file is damaged, has a different hash, names a
            class that it may not name, does not fit the class, or has non-finite weights.
        OSError: it cannot be found or fetched.
    """
    if backbone is not None and not isinstance(backbone, nn.Module):
        raise ValueError(
            "backbone must be a module that the weights fill, such as SmallResNet(), got "
            f"{backbone!r:.100}"
        )
    found = locate(name, sha256, file, strict, trust)
    path, card = found.path, found.card
    saved = read(path)
    layout = layout or (card.layout if card else None)
    if layout is None and is_checkpoint(saved):
        module = _of_run(saved, path, backbone, whole, train, trust)
        expected, metadata = of_checkpoint(saved)
        expects = (expected, metadata.get(TOKENIZER))
        check_finite(module.state_dict(), str(path))
    elif whole:
        raise ValueError(
            f"{str(path)!r} must be a Lightning checkpoint of sslzoo with whole=True, got a file "
            "of weights"
        )
    else:
        if layout in (None, "torchvision"):
            saved = _unwrapped(saved)
        if card is None:
            _refuse_no_weights(saved, str(path))
        state = saved if layout is None else convert(saved, layout, str(path))[0]
        module = _encoder(state, path, card, backbone, trust)
        expects = (card.preprocessing, tokenizer_json(path)) if card else (None, None)
    about: Any = module
    if card is not None:
        _print_license(card)
        about.card = card
    if (card is not None or expects[0] is not None) and not whole:
        about.preprocess = preprocessor(*expects, str(path), trust)
        if card is not None and card.kind == "image":
            about.preprocess.channels = card.channels  # 3 if the card names none
    return module.train(train)


def network(name: str) -> nn.Module:
    """Build the encoder that `load` returns, with newly initialized weights.

    The checkpoint of a run that started from a zoo encoder contains its own weights.

    Args:
        name: see `load`, but not a URL.

    Raises:
        ValueError: the name is a URL, or see `load`.
        OSError: the file does not exist.
    """
    if is_url(str(name)):
        raise UntrustedError("sslzoo.load", f"would download {name!r}", "a file")
    found = locate(name)
    if found.card is not None:
        return build_backbone(found.card.backbone, str(found.path))
    saved = read(found.path)
    if not is_checkpoint(saved):
        raise ValueError(f"{str(found.path)!r} must have a card that names its class, got none")
    return encoder_of(module_of(saved, str(found.path)), found.path, train=True)


def _unwrapped(saved: Any) -> Any:
    """Unwrap a checkpoint's `state_dict` or `model` entry if there are no tensors next to it."""
    for key in ("state_dict", "model"):
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            return saved if any(isinstance(v, Tensor) for v in saved.values()) else saved[key]
    return saved


def _refuse_no_weights(saved: Any, where: str) -> None:
    parts = saved.values() if isinstance(saved, Mapping) else ()
    if not any(isinstance(part, Tensor | Mapping) for part in parts):
        held = list(saved)[:3] if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(f"{where!r} must have tensors by name, got {held!r:.200}")


def is_checkpoint(saved: Any) -> bool:
    """Whether a file's contents are a Lightning checkpoint."""
    return isinstance(saved, Mapping) and "pytorch-lightning_version" in saved


def _encoder(
    state: Any, path: Path, card: Card | None, backbone: nn.Module | None, trust: bool
) -> nn.Module:
    if backbone is not None:
        full = complete(state, backbone, str(path))
        surplus = sorted(full.keys() - backbone.state_dict().keys())
        if surplus and all(name.startswith(LAYOUTS["torchvision"].drop or ()) for name in surplus):
            raise ValueError(
                f"{str(path)!r} must have only the tensors of the backbone, got {surplus} too; "
                "pass layout='torchvision', which omits a classifier"
            )
        fill(backbone, full, str(path))
        encoder = backbone
    elif card is not None:
        encoder = filled(card.backbone, state, str(path), trust)
    else:
        raise ValueError(
            f"{str(path)!r} must have a card next to it, got none; or pass backbone=, the module "
            "that it fills"
        )
    if card is not None:
        card.check_width(encoder)
    return encoder


def _of_run(
    saved: Mapping[str, Any],
    path: Path,
    backbone: nn.Module | None,
    whole: bool,
    train: bool,
    trust: bool,
) -> nn.Module:
    """Load the encoder of a Lightning checkpoint of ours, or its whole method."""
    where = str(path)
    built_in_python = "_class_path" not in hyper_parameters(saved, where)
    if built_in_python and backbone is not None and not whole:
        state = under(saved, "backbone.", where)
        fill(backbone, complete(state, backbone, where), where)
        return backbone
    given: Any = {} if backbone is None else {"backbone": backbone}
    method = module_of(saved, where, whole=whole, trust=trust, **given)
    if whole:
        return method
    encoder = encoder_of(method, path, train)
    if backbone is None or encoder is backbone:
        return encoder
    fill(backbone, encoder.state_dict(), where)  # the encoder is a teacher, a copy of the student
    return backbone


def encoder_of(method: LightningModule, path: Path, train: bool) -> nn.Module:
    """The encoder of a method that was loaded from `path`, for further training or not.

    Raises:
        ValueError: the method has none.
    """
    give = getattr(method, "encoder", None)
    if not callable(give):
        raise ValueError(
            f"the method in {str(path)!r} must have encoder(), got {type(method).__name__} without "
            "it"
        )
    encoder: nn.Module = give()
    if train and isinstance(method, SSLMethod):
        for student, teacher in method.teacher_pairs():
            if teacher is encoder:  # frozen, and without drop path, as a teacher is
                _train_as(encoder, student)
    return encoder


def _train_as(teacher: nn.Module, student: nn.Module) -> None:
    """Copy requires_grad and drop-path rates from the student to the teacher."""
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    for mine, his in zip(teacher.modules(), student.modules(), strict=True):
        if hasattr(his, "drop_prob"):
            cast(Any, mine).drop_prob = his.drop_prob


def _print_license(card: Card) -> None:
    if card.non_commercial:
        print(f"{card.name}: weights under {card.license['weights']}", file=sys.stderr)
