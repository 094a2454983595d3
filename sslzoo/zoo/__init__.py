"""Zoo: trained encoders by name, path or URL, each with a card; converters and export."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "LAYOUTS": "converters",
    "Card": "card",
    "Layout": "converters",
    "card_named": "catalog",
    "card_of": "card",
    "convert": "converters",
    "entries": "catalog",
    "list_models": "catalog",
    "load_image_text": "image_text",
    "load_start_weights": "start_weights",
    "locate": "weights_file",
    "read_card": "card",
    "verify": "verifying",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import each part on first use: the cache, for example, does not need torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"sslzoo.zoo.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'sslzoo.zoo' has no attribute {name!r}")
