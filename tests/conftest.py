"""Fixtures that every test module may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ranks import Ranks

# One thread: with two, torch 2.14's convolutions write beyond their memory for odd batches of
# images and very few channels; seen for toys alone.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """`ranks(world_size, function, *args)`: see tests/ranks.py."""
    pools = Ranks()
    yield pools
    pools.close()
