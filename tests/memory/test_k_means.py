"""Spherical k-means: a slow reference, ranks, empty clusters. Official arrays: test_clusters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.memory import k_means, spherical_k_means
from tests.losses.parity import COUNTS
from tests.ranks import Ranks


def reference(rows: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, list[int]]:
    """Row by row and cluster by cluster."""

    def nearest(row: Tensor) -> int:
        cosines = [float(row @ c) for c in centroids]
        return cosines.index(max(cosines))

    for _ in range(iterations):
        own = [nearest(row) for row in rows]
        moved = []
        for k, old in enumerate(centroids):
            members = [row for row, of in zip(rows, own, strict=True) if of == k]
            mean = torch.stack(members).mean(0) if members else old
            moved.append(mean / mean.norm())
        centroids = torch.stack(moved)
    return centroids, [nearest(row) for row in rows]


def _rows(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return F.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=1).to(dtype)


@pytest.mark.parametrize("block", [1, 40, 1 << 24])
@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_equals_the_reference_in_any_blocks(
    monkeypatch: pytest.MonkeyPatch, iterations: int, block: int
) -> None:
    monkeypatch.setattr(k_means, "_COSINES_BLOCK", block)
    rows = _rows(30)
    centroids, own = spherical_k_means(rows, rows[:4], iterations)
    wanted, labels = reference(rows, rows[:4], iterations)
    torch.testing.assert_close(centroids, wanted)
    assert own.tolist() == labels


def test_hand_worked_iteration() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    centroids, own = spherical_k_means(rows, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 1)
    # Row 1 is nearer to (0, 1); the mean of (0.6, 0.8) and (0, 1) points along (1, 3).
    torch.testing.assert_close(centroids, torch.tensor([[1.0, 0.0], [0.1**0.5, 0.9**0.5]]))
    assert own.tolist() == [0, 1, 1]


def test_a_centroid_without_rows_stays() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    centroids, own = spherical_k_means(rows, torch.tensor([[1.0, 0.0], [0.0, -1.0]]), 5)
    assert own.tolist() == [0, 0]
    assert centroids[1].tolist() == [0.0, -1.0]


def _on_rank(rank: int, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    rows = _rows(6)
    return spherical_k_means(rows.split(counts)[rank], rows[[4, 1, 0]], 3)


@pytest.mark.parametrize("counts", [*COUNTS, (6, 0)])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    centroids, own = _on_rank(0, (6,))
    results = ranks(len(counts), _on_rank, counts)
    for of_rank, _ in results:
        torch.testing.assert_close(of_rank, centroids, rtol=1e-12, atol=0)
        assert torch.equal(of_rank, results[0][0])
    assert torch.equal(torch.cat([labels for _, labels in results]), own)


def test_half_precision_rows_are_summed_in_float32() -> None:
    rows = _rows(30, torch.bfloat16)
    centroids, own = spherical_k_means(rows, rows[:4], 3)
    wanted, labels = spherical_k_means(rows.float(), rows[:4].float(), 3)
    assert centroids.dtype == torch.float32
    assert torch.equal(centroids, wanted)
    assert torch.equal(own, labels)
