"""sslzoo: a PyTorch Lightning model zoo of self-supervised learning.

`import sslzoo` loads nothing; `sslzoo.methods.SimCLR` and the other parts are imported when named.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"
__all__ = [
    "backbones",
    "batch",
    "callbacks",
    "data",
    "distributed",
    "eval",
    "heads",
    "losses",
    "memory",
    "methods",
    "norm",
    "optim",
    "random",
    "transforms",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"sslzoo.{name}")
    raise AttributeError(f"module 'sslzoo' has no attribute {name!r}; its parts are {__all__}")
