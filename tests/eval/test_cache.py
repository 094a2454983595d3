"""The cache gives what was computed, only for the same weights and data, and only whole files."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from sslzoo.eval.cache import cached_features
from sslzoo.eval.features import Features
from sslzoo.eval.fingerprint import module_digest, tensor_digest
from tests.ranks import Ranks


def features(labeled: bool = True) -> Features:
    x = torch.arange(12.0).view(4, 3)
    return Features(x, torch.tensor([0, 1, 0, 2]) if labeled else None, torch.arange(4))


def same(a: Features, b: Features) -> bool:
    pairs = zip(a, b, strict=True)
    return all(y is None if x is None else torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("labeled", [True, False])
def test_computes_once(tmp_path: Path, labeled: bool) -> None:
    calls = []

    def compute() -> Features:
        calls.append(1)
        return features(labeled)

    first, was_there = cached_features(tmp_path, "key", compute)
    assert not was_there
    second, was_there = cached_features(tmp_path, "key", compute)
    assert was_there
    assert same(first, second)
    cached_features(tmp_path, "another key", compute)
    cached_features(None, "key", compute)
    assert len(calls) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_a_truncated_file_is_computed_again(tmp_path: Path) -> None:
    cached_features(tmp_path, "key", features)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    got, was_there = cached_features(tmp_path, "key", features)
    assert not was_there
    assert same(got, features())
    assert cached_features(tmp_path, "key", features)[1]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    def bad() -> Features:
        return features()._replace(features=torch.sparse_coo_tensor(size=(4, 3)))

    with pytest.raises(Exception):  # noqa: B017, PT011 (safetensors' own kinds)
        cached_features(tmp_path, "key", bad)
    assert not list(tmp_path.iterdir())


def test_digests_change_with_what_they_are_of() -> None:
    a = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([3])}
    assert tensor_digest(a) == tensor_digest(dict(reversed(a.items())))
    for other in (
        {**a, "x": torch.tensor([1.0, 2.5])},
        {**a, "x": torch.tensor([[1.0, 2.0]])},
        {**a, "x": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"z": a["x"], "y": a["y"]},
    ):
        assert tensor_digest(other) != tensor_digest(a)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    digest = module_digest(net)
    assert module_digest(nn.Sequential(net[0], nn.GELU())) != digest
    net.pool = "mean"  # what a forward may look at, in no parameter
    assert module_digest(net) != digest
    del net.pool
    net.register_buffer("unsaved", torch.ones(1), persistent=False)
    assert module_digest(net) != digest
    del net.unsaved
    assert module_digest(net.eval()) == digest
    with torch.no_grad():
        net[0].bias += 1e-3
    assert module_digest(net) != digest


def on_full_rank(rank: int, folder: str) -> tuple[list[bool], str]:
    """Of which the second cannot write."""
    (Path(folder) / "file").touch()
    mine = Path(folder) / ("file" if rank else "folder") / "cache"
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        known = [cached_features(mine, "key", features)[1] for _ in range(2)]
    return known, said.getvalue()


def test_what_cannot_be_cached_is_said_and_every_rank_goes_on(tmp_path: Path, ranks: Ranks) -> None:
    (whole, quiet), (full, said) = ranks(2, on_full_rank, str(tmp_path))
    assert whole == full == [False, False]
    assert not quiet
    assert "features are not cached in" in said


def on_rank(rank: int, folder: str) -> list[bool]:
    def compute() -> Features:
        return features()._replace(index=torch.arange(4) + 4 * rank)

    first = cached_features(Path(folder), "key", compute)
    second = cached_features(Path(folder), "key", compute)
    assert same(first[0], second[0])
    return [first[1], second[1]]


def test_each_rank_has_its_own_file(tmp_path: Path, ranks: Ranks) -> None:
    assert ranks(2, on_rank, str(tmp_path)) == [[False, True], [False, True]]
    assert len(list(tmp_path.iterdir())) == 2
    next(tmp_path.iterdir()).unlink()  # one rank computes: both do
    assert ranks(2, on_rank, str(tmp_path)) == [[False, True], [False, True]]
