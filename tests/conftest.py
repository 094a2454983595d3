"""Fixtures that every test module may ask for."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.multiprocessing
from PIL import Image
from torch.utils.data import dataloader

from tests.ranks import PRELOADED, Ranks, settle_torch

settle_torch()
torch.multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
# Else each of the processes that tests start compiles the library's source anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
_loaders: weakref.WeakSet[Any] = weakref.WeakSet()  # with workers, of the test that runs
_begin = dataloader._MultiProcessingDataLoaderIter.__init__


def _remember(loader: Any, *args: Any) -> None:
    _loaders.add(loader)
    _begin(loader, *args)


dataloader._MultiProcessingDataLoaderIter.__init__ = _remember  # type: ignore[method-assign]


def pytest_sessionstart() -> None:
    gc.disable()  # what is imported and collected stays


def pytest_collection_finish() -> None:
    """Keep what is imported out of garbage collections, which take seconds with it."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)  # a test makes thousands of objects and few cycles


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """`ranks(world_size, function, *args)`: see tests/ranks.py."""
    pools = Ranks()
    yield pools
    pools.close()


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    """Forget compiled code: torch's limit on recompilations counts those of all tests."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(autouse=True)
def _nothing_deterministic() -> Iterator[None]:
    """Undo `Trainer(deterministic=True)`, with which torch fills all new memory."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _no_workers_left() -> Iterator[None]:
    """Stop the workers of a test that failed in mid-epoch, as some do on purpose.

    The traceback is in a cycle with the loader, and a garbage collection closes the pipes to the
    workers before it stops them, so that some later test waits 5 seconds for each.
    """
    yield
    for loader in _loaders:
        loader._shutdown_workers()
    _loaders.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of 60 + 20 small images in two classes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for part, count in (("train", 30), ("val", 10)):
        for label, brightness in (("dark", 105), ("light", 145)):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                level = generator.normal(brightness, 30)
                pixels = generator.normal(level, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{i:02d}.png")
    return root
