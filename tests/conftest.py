"""Fixtures that every test module may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """`ranks(world_size, function, *args)`: see tests/ranks.py."""
    pools = Ranks()
    yield pools
    pools.close()
