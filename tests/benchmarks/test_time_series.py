"""The benchmark on time series: arrays of several lengths, and baselines without an encoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import table, time_series
from sslzoo.batch import Padded
from sslzoo.data import SequenceArrays


def test_series_of_several_lengths_are_what_the_recipe_reads(tmp_path: Path) -> None:
    series = [np.arange(2.0 * n).reshape(2, n) for n in (5, 3, 4)]
    packed = time_series.pack(series, ["b", "a", "b"], ["a", "b"])
    np.savez(tmp_path / "train.npz", **packed)
    data = SequenceArrays(str(tmp_path), window=3, batch_size=3, standardize=False)
    data.setup("fit")
    (view,) = data.sets.train.__getitems__([0, 1, 2]).views
    assert view.lengths.tolist() == [5, 3, 4]
    assert data.sets.train.labels.tolist() == [1, 0, 1]
    assert view.values[1].tolist() == [[0, 3], [1, 4], [2, 5], [0, 0], [0, 0]]


def test_raw_values_are_cut_or_padded_to_one_length() -> None:
    view = Padded(torch.arange(6.0).view(1, 3, 2), torch.tensor([3]))
    assert time_series.flat(view, 4).tolist() == [[0, 1, 2, 3, 4, 5, 0, 0]]
    assert time_series.flat(view, 2).tolist() == [[0, 1, 2, 3]]


@pytest.mark.skipif(importlib.util.find_spec("aeon") is not None, reason="aeon is installed")
def test_without_aeon_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="pip install aeon"):
        time_series.write(tmp_path, "JapaneseVowels")


def test_the_table_has_mean_and_deviation_over_the_seeds() -> None:
    same = {"statistics": [0.5, 0.5], "values": [0.25, 0.25], "untrained": [0.5, 0.6]}
    result = {
        "accuracy": {**same, "trained": [0.8, 0.9]},
        "series": {"train": 3, "val": 2},
        "cpu_minutes": 1.0,
        "seeds": [0, 1],
        "config": "c.yaml",
        "commit": "a" * 40,
        "cpu": "a processor",
        "cores": 2,
    }
    shown = table.series_table({"Leaves": result})
    assert "| Leaves | 3, 2 | 0.850 ± 0.071 | 0.550 ± 0.071 | 0.500 | 0.250 | 1.0 |" in shown
