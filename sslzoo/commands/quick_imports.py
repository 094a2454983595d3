"""Imports without the garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and what is built on it without collecting garbage in between.

    Python's collector walks through all objects again and again while an import makes more of them,
    a third of the CPU time of `sslzoo fit --help`. What was imported is then left out of later
    collections, of the training too. Where torch is imported already, nothing changes.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
