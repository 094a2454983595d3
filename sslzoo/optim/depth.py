"""Depth: the layer of each parameter of an encoder, counted from the input."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from timm.models._manipulate import group_with_matcher
from torch import nn

# Lists of blocks: blocks.0 in our nets, encoder.layer.0, layers.0 and h.0 in transformers' encoders
_BLOCK = re.compile(r"^(.*?\b(?:blocks|block|layer|layers|h)\.)(\d+)\.")
_AFTER = "~after"  # matches no pattern of timm's
_NORM = re.compile(r"(?:fc_)?norm\.")  # timm has the final norm in the last block


class Depth(NamedTuple):
    """The layers of an encoder.

    Attributes:
        layers: layer by parameter name: 0 is the stem, i + 1 the block i, the last what follows.
        last: the last layer, to which new heads belong too.
    """

    layers: dict[str, int]
    last: int


def encoder_of(module: nn.Module) -> tuple[str, nn.Module]:
    """Prefix and module of the encoder of a method or of a classifier; otherwise the whole."""
    for name in ("backbone", "model.backbone"):
        try:
            return f"{name}.", module.get_submodule(name)
        except AttributeError:
            continue
    return "", module


def depth_of(encoder: nn.Module) -> Depth:
    """Find the layers of an encoder.

    A timm model (ResNet, ConvNeXt, Swin, EfficientNet, ...) follows its own `group_matcher`, except
    that the final norm is part of the last layer, as in BEiT. In other encoders, what is defined
    before the longest list of blocks is the stem, what is defined after it the last layer.

    Raises:
        ValueError: the encoder is no timm model and has no list of blocks.
    """
    names = [name for name, _ in encoder.named_parameters()]
    for prefix, part in encoder.named_modules():
        if hasattr(part, "group_matcher"):
            return _by_matcher(names, f"{prefix}." if prefix else "", part)
    found = [(name, match) for name in names if (match := _BLOCK.match(name))]
    if not found:
        raise ValueError(
            "the encoder must be a timm model or have blocks.0, blocks.1, ... (or layer, layers, "
            f"h) to know its layers, got {type(encoder).__name__} without them"
        )
    lists = [match[1] for _, match in found]
    longest = max(dict.fromkeys(lists), key=lists.count)
    blocks = {name: int(match[2]) + 1 for name, match in found if match[1] == longest}
    first, last = names.index(next(iter(blocks))), max(blocks.values()) + 1
    layers = {n: blocks.get(n, 0 if i < first else last) for i, n in enumerate(names)}
    return Depth(layers, last)


def _by_matcher(names: list[str], prefix: str, part: Any) -> Depth:
    inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    matched = group_with_matcher(
        ((name, None) for name in [*inner, _AFTER]), part.group_matcher(), reverse=True
    )
    last = matched[_AFTER]
    matched |= {name: last for name in inner if _NORM.match(name)}
    return Depth({n: matched.get(n.removeprefix(prefix), last) for n in names}, last)
