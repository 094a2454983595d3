"""Trajectories: what is recorded where gymnasium is there, and what is asked elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import trajectories


@pytest.mark.skipif(
    importlib.util.find_spec("gymnasium") is not None, reason="gymnasium is installed"
)
def test_without_gymnasium_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"pip install 'sslzoo\[rl\]'"):
        trajectories.write(tmp_path)


def test_episodes_are_what_the_recipe_reads() -> None:
    pytest.importorskip("gymnasium")
    episode = trajectories.record(10.0, 20, seed=0)
    assert episode.shape == (20, 3)
    np.testing.assert_allclose(episode[:, 0] ** 2 + episode[:, 1] ** 2, 1, rtol=1e-5)
    assert np.array_equal(episode, trajectories.record(10.0, 20, seed=0))


def test_statistics_are_over_time() -> None:
    values = torch.randn(2, 5, 3)
    got = trajectories.statistics(values)
    torch.testing.assert_close(got[:, :3], values.mean(1))
    torch.testing.assert_close(got[:, 3:], values.std(1))
