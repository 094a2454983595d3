"""sslzoo: a PyTorch Lightning model zoo of self-supervised learning.

`import sslzoo` loads nothing; `sslzoo.methods.SimCLR`, `sslzoo.load` and the other parts are
imported when named.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
_FUNCTIONS = {
    "embed": "runs.embed",
    "list_models": "zoo.catalog",
    "load": "zoo.load",
    "start_from": "runs.start",
}
__all__ = [
    "backbones",
    "batch",
    "callbacks",
    "data",
    "distributed",
    "embed",
    "eval",
    "heads",
    "layers",
    "list_models",
    "load",
    "losses",
    "masks",
    "memory",
    "methods",
    "optim",
    "random",
    "runs",
    "start_from",
    "transforms",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"sslzoo.{_FUNCTIONS[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"sslzoo.{name}")
    raise AttributeError(f"module 'sslzoo' has no attribute {name!r}; its parts are {__all__}")
