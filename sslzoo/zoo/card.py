"""Model card: metadata of a trained encoder, as a dataclass and a JSON file.

It contains the training (method, backbone class, data, recipe, commit, epochs, seeds), the
quality (protocol, score), the license and the file (sha256, urls, layout).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslzoo.checks import check_num_features
from sslzoo.zoo.cache import plain_name

if TYPE_CHECKING:
    from sslzoo.transforms.image.eval_view import EvalView

LARGEST = 1 << 20  # maximum bytes of a card; those of the zoo have two thousand
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_DEEPEST = 32  # maximum nesting of dictionaries and lists
_LICENSES = {"code", "weights"}
_VIEW = {"size", "resize", "mean", "std", "interpolation", "fraction", "space", "squash"}
_LARGEST_NUMBER, _LARGEST_COUNT = 1e30, 1 << 31  # limit of floats and tensor sizes
_RGB = 3  # default number of channels


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST_NUMBER  # False for NaN


def _is_class(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class_path"), str)


_COUNT = "an integer above 0", lambda v: type(v) is int and 0 < v < _LARGEST_COUNT
_SHARE = "a number above 0 and at most 1", lambda v: _is_number(v) and 0 < v <= 1
_NUMBERS = (
    "a list of numbers",
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(_is_number, v)),
)
_CLASS = "a class_path with its init_args", _is_class
_NAME = "text", lambda v: isinstance(v, str)
# Keys of `preprocessing` per kind of data: the required ones, and their allowed values.
_KINDS: dict[str, tuple[set[str], dict[str, tuple[str, Callable[[Any], bool]]]]] = {
    "image": (
        {"size"},
        {
            **dict.fromkeys(("size", "resize", "channels"), _COUNT),
            **dict.fromkeys(("mean", "std", "range", "value_range"), _NUMBERS),
            **dict.fromkeys(("clip", "squash"), ("true or false", lambda v: isinstance(v, bool))),
            **dict.fromkeys(("interpolation", "space"), _NAME),
            "fraction": _SHARE,
        },
    ),
    "waveform": ({"rate", "transform"}, {"rate": _COUNT, "window": _COUNT, "transform": _CLASS}),
    "text": ({"max_length"}, {"max_length": _COUNT, "tokenizer": _CLASS}),
    "frames": ({"mean", "std"}, {"mean": _NUMBERS, "std": _NUMBERS}),
}
KINDS = tuple(_KINDS)


@dataclass(frozen=True)
class Card:
    """Metadata of one zoo entry; the fields are the keys of its JSON.

    Args:
        name: name in the zoo, such as "simclr-small_resnet-cifar10jpeg".
        file: the weights' file name.
        method: class path of our method, or the name of the method in the authors' code.
        backbone: `class_path` and `init_args` of the encoder.
        num_features: width of its features.
        parameters: number of its parameters.
        data: training data.
        preprocessing: the preprocessing that the encoder expects (`encoder.preprocess`); None if
            unknown. For images: the arguments of `EvalView`, the `range` of the pixels, the number
            of `channels` (by default that of `mean`, otherwise 3), and the `value_range` of raw
            images where it was declared, with `clip`. For other data: a `kind`
            and the arguments of `data.WaveformInput` ("waveform"), `TextInput` ("text"; the
            tokenizer's JSON is in the weights' metadata, unless the card names a tokenizer) or
            `FrameInput` ("frames").
        license: licenses of `code` and `weights`.
        sha256: hash of the file, or the prefix (8 digits or more) that its authors publish.
        md5: prefix of its md5, if the authors publish that.
        dtype: precision of the floating-point tensors in the file.
        recipe: training config (YAML), relative to the repository's root.
        recipe_changes: additional arguments of the command.
        commit: commit of the training code.
        epochs: number of training epochs.
        seeds: training seeds.
        protocol: evaluation protocol of the score.
        score: metric -> value in 0..1.
        features: first few features of the fixed input, see `verifying`.
        urls: URLs of the file; the first that answers is used.
        layout: layout of the encoder in a file of another code base, see `LAYOUTS`; None:
            safetensors under the encoder's own names.
        source: origin of the file: repository, commit.
        note: unverified facts, and differences from the authors' code.
    """

    name: str
    file: str
    method: str
    backbone: dict[str, Any]
    num_features: int
    data: str
    preprocessing: dict[str, Any] | None
    license: dict[str, str]
    parameters: int | None = None
    sha256: str | None = None
    md5: str | None = None
    dtype: str = "float32"
    recipe: str | None = None
    recipe_changes: list[str] = dataclasses.field(default_factory=list)
    commit: str | None = None
    epochs: int | None = None
    seeds: list[int] = dataclasses.field(default_factory=list)
    protocol: str | None = None
    score: dict[str, float] = dataclasses.field(default_factory=dict)
    features: list[float] = dataclasses.field(default_factory=list)
    urls: list[str] = dataclasses.field(default_factory=list)
    layout: str | None = None
    source: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        for wrong in _complaints(self):
            raise ValueError(f"card of {self.name!r}: {wrong}")

    @property
    def non_commercial(self) -> bool:
        """Whether the license of the weights forbids commercial use."""
        text = self.license["weights"].lower()
        return "-nc" in text or "non-commercial" in text or "noncommercial" in text

    @property
    def kind(self) -> str:
        """Kind of data: "image", "waveform", "text", "frames", or "unknown"."""
        return "unknown" if self.preprocessing is None else self.preprocessing.get("kind", "image")

    @property
    def channels(self) -> int:
        """Number of channels of the images that the encoder expects."""
        return channels_of(self.preprocessing or {})

    def preprocess(self) -> EvalView:
        """Preprocess images (B, C, H, W), uint8 or in [0, 1], as the encoder expects.

        Raises:
            ValueError: the encoder is not for images.
        """
        if self.preprocessing is None or self.kind != "image":
            raise ValueError(f"{self.name!r} must be an encoder of images, got one of {self.kind}")
        view = image_view(self.preprocessing)
        view.channels = self.channels
        return view

    def check_width(self, encoder: object) -> None:
        """Raise ValueError unless the encoder has the card's `num_features`."""
        width = check_num_features(encoder, f"encoder of {self.name!r}")
        if width != self.num_features:
            raise ValueError(
                f"num_features must be {self.num_features}, as on the card of {self.name!r}, got "
                f"{width} of {type(encoder).__name__}"
            )

    def to_json(self) -> str:
        """Serialize the card for `read_card`, omitting empty fields."""
        raw = dataclasses.asdict(self)
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        kept = {k: v for k, v in raw.items() if v != defaults[k] and v != []}
        return json.dumps(kept, indent=1) + "\n"


def _complaints(card: Card) -> list[str]:
    """List the errors in the values, in the order of the fields."""
    wrong = []
    hints = {f.name: str(f.type) for f in dataclasses.fields(Card)}
    for name, hint in hints.items():
        value = getattr(card, name)
        allowed = {
            "str": isinstance(value, str),
            "int": isinstance(value, int) and not isinstance(value, bool),
            "dict": isinstance(value, dict),
            "list": isinstance(value, list),
            "None": value is None,
        }
        kinds = {kind.partition("[")[0].strip() for kind in hint.split("|")}
        if not any(fits and kind in kinds for kind, fits in allowed.items()):
            wrong.append(f"{name} must be {hint}, got {value!r}")
    if wrong:
        return wrong
    for name in ("name", "file"):  # names of a folder and of a file in the cache
        if not plain_name(getattr(card, name)):
            wrong.append(f"{name} must be a plain file name, got {getattr(card, name)!r:.100}")
    if not isinstance(card.backbone.get("class_path"), str):
        wrong.append(f"backbone must have a class_path, got {card.backbone!r}")
    texts = all(isinstance(text, str) for text in card.license.values())
    if set(card.license) != _LICENSES or not texts:
        wrong.append(f"license must have texts for {sorted(_LICENSES)}, got {card.license!r}")
    for name, least, most in (("sha256", 8, 64), ("md5", 6, 32)):
        digest = getattr(card, name)
        hexadecimal = digest is None or set(digest) <= set(string.hexdigits.lower())
        if digest is not None and not (hexadecimal and least <= len(digest) <= most):
            wrong.append(f"{name} must be {least} to {most} hex digits, got {digest!r}")
    if card.preprocessing is not None:
        wrong += complaints_of_preprocessing(card.preprocessing)
    for metric, value in card.score.items():
        if not isinstance(value, float) or not 0 <= value <= 1:
            wrong.append(f"scores must be in 0..1, got {metric}: {value!r}")
    return wrong


def complaints_of_preprocessing(given: dict[str, Any]) -> list[str]:
    """List the errors in a card's preprocessing."""
    kind = given.get("kind", "image")
    if kind not in list(_KINDS):  # a list is not hashable
        return [f"kind of the preprocessing must be one of {sorted(_KINDS)}, got {kind!r}"]
    needed, allowed = _KINDS[kind]
    if needed - given.keys() or given.keys() - allowed.keys() - {"kind"}:
        return [
            f"preprocessing must have the keys {sorted(needed)} and no others than "
            f"{sorted(allowed)}, got {given!r}"
        ]
    wrong = [
        f"{key} of the preprocessing must be {what}, got {given[key]!r}"
        for key, (what, fits) in allowed.items()
        if key in given and not fits(given[key]) and (key in needed or given[key] is not None)
    ]
    if kind != "image" or wrong:
        return wrong
    channels = channels_of(given)
    if any(given.get(key) and len(given[key]) != channels for key in ("mean", "std")):
        return [f"mean and std must have {channels} numbers, one per channel, got {given!r}"]
    return []


def channels_of(preprocessing: Mapping[str, Any]) -> int:
    """Number of channels of the images, according to the preprocessing."""
    return preprocessing.get("channels") or len(preprocessing.get("mean") or [0] * _RGB)


def image_view(preprocessing: Mapping[str, Any]) -> EvalView:
    """Build the view that an image preprocessing describes.

    Raises:
        ValueError: its values contradict each other.
    """
    # Listing cards must not import torch.
    from sslzoo.transforms.image.eval_view import EvalView
    from sslzoo.value_range import check_value_range

    view = {k: v for k, v in preprocessing.items() if k in _VIEW and v is not None}
    if "fraction" not in view and not view.get("squash"):
        view.setdefault("resize", view["size"])  # identity for images of that size
    made = EvalView(**view)
    if preprocessing.get("channels"):
        made.channels = preprocessing["channels"]
    made.value_range = check_value_range(preprocessing.get("value_range"))
    made.clip = bool(preprocessing.get("clip"))
    return made


def card_of(raw: Mapping[str, Any], where: str) -> Card:
    """Build a card from a JSON object.

    Args:
        raw: the object.
        where: its file, for errors.

    Raises:
        ValueError: a key is missing, unknown or of the wrong type.
    """
    if "licence" in raw and "license" not in raw:  # version 0.1's format
        raw = {"license" if key == "licence" else key: value for key, value in raw.items()}
    fields = dataclasses.fields(Card)
    needed = {
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing, unknown = needed - raw.keys(), raw.keys() - {f.name for f in fields}
    if missing or unknown:
        raise ValueError(
            f"{where} is not a card of the zoo: missing {sorted(missing)}, unknown "
            f"{sorted(unknown)}"
        )
    return Card(**raw)


def read_card(path: Path) -> Card:
    """Read a card from a file.

    Raises:
        ValueError: the file is not JSON of plain values with unique keys, or not a card.
        OSError: the file cannot be read.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"a card must have at most {LARGEST} bytes, got more in {path}")
    try:
        raw = json.loads(
            path.read_bytes().decode(),
            object_pairs_hook=_without_repeats,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError(f"{path} is not a card of the zoo: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is not a card of the zoo: it must be a JSON object")
    _refuse_odd(raw, path, 1)
    return card_of(raw, str(path))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"keys must be unique, got {name!r:.100} twice")
        made[name] = value
    return made


def _finite(text: str) -> float:
    """Parse a number that other JSON readers accept too."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"numbers must be finite, got {text:.100}")
    return value


def _refuse_odd(value: Any, path: Path, depth: int) -> None:
    """Refuse nesting that breaks later readers, and terminal control characters."""
    if depth > _DEEPEST:
        raise ValueError(f"{path} is not a card of the zoo: it is nested too deeply")
    if isinstance(value, str) and _CONTROL.search(value):
        raise ValueError(
            f"{path} is not a card of the zoo: it has control characters in {value!r:.100}"
        )
    for part in value if isinstance(value, list) else ():
        _refuse_odd(part, path, depth + 1)
    for name, part in value.items() if isinstance(value, dict) else ():
        _refuse_odd(name, path, depth + 1)
        _refuse_odd(part, path, depth + 1)
