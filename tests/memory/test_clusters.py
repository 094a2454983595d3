"""The cluster memory: the authors' clusterings, slots, ranks, unseen samples and saving."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.memory import ClusterMemory, memory_buffers
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks


def _rows(n: int, num_crops: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return F.normalize(torch.randn(n, num_crops, 3, generator=generator).double(), dim=-1)


def _memory(size: int = 9) -> ClusterMemory:
    return ClusterMemory(size, 3, [4, 3, 2]).double()


def test_equals_the_authors() -> None:
    z = load("swav/deepcluster_cluster_memory.npz")
    hyper = z["meta"]["hyper"]
    memory = ClusterMemory(hyper["N"], hyper["dim"], hyper["nmb_prototypes"])
    index, rows = torch.from_numpy(z["memory_index"]), torch.from_numpy(z["memory"])
    memory.stage(index, rows.transpose(0, 1))
    memory.commit()
    # Their permutations are of the memory's rows, ours of the samples.
    memory.first_samples = (
        lambda h, n, epoch, seed: (  # type: ignore[method-assign]
            index[torch.from_numpy(z[f"randperm{h}"])][: hyper["nmb_prototypes"][h]]
        )
    )
    memory.cluster(epoch=0, seed=0)
    assert_close_to_golden(memory.assignments.T, z["assignments"], 0)
    for h, centroids in enumerate(memory.centroids):
        assert_close_to_golden(centroids, z[f"prototypes{h}"], 1e-6)


def test_a_commit_writes_slots_and_the_last_of_several_wins() -> None:
    memory, rows = _memory(), _rows(4)
    memory.stage(torch.tensor([7, 2]), rows[:2].requires_grad_())
    memory.stage(torch.tensor([7, 0]), rows[2:])
    assert not memory.rows.any()  # a step never sees its own rows
    memory.commit()
    assert not memory.rows.requires_grad
    assert torch.equal(memory.rows[[7, 2, 0]], rows[[2, 1, 3]].detach())
    assert not memory.rows[[1, 3, 4, 5, 6, 8]].any()


def test_samples_not_seen_are_in_no_cluster() -> None:
    memory, seen = _memory(), torch.tensor([8, 1, 3, 4, 6])
    memory.stage(seen, _rows(5))
    memory.commit()
    assert int(memory.epoch) == -1
    memory.cluster(epoch=3, seed=0)
    assert int(memory.epoch) == 3
    known = memory.assignments >= 0
    assert known.all(dim=1).nonzero().squeeze(1).tolist() == sorted(seen.tolist())
    assert (memory.assignments[~known] == -100).all()
    assert (memory.assignments < torch.tensor([4, 3, 2])).all()


def test_clustering_h_is_of_crop_h_modulo_their_number() -> None:
    memory = ClusterMemory(30, 3, [2, 2, 2]).double()
    rows = _rows(30)
    memory.stage(torch.arange(30), rows)
    memory.commit()
    memory.cluster(0, 0)
    for h, centroids in enumerate(memory.centroids):
        nearest = (rows[:, h % 2] @ centroids.T).argmax(dim=1)
        assert torch.equal(memory.assignments[:, h], nearest)


def test_first_centroids_are_distinct_and_of_seed_epoch_and_clustering() -> None:
    memory = ClusterMemory(100, 3, [40, 40])
    draws = [
        tuple(memory.first_samples(h, 100, epoch, seed).tolist())
        for h, epoch, seed in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert all(len(set(draw)) == 40 for draw in draws)
    assert len(set(draws)) == 4
    assert draws[0] == tuple(memory.first_samples(0, 100, 0, 0).tolist())


def test_fewer_samples_than_clusters_is_an_error() -> None:
    memory = _memory()
    memory.stage(torch.arange(3), _rows(3))
    memory.commit()
    with pytest.raises(ValueError, match="at most 3, the number of samples seen, got 4"):
        memory.cluster(0, 0)


def _on_rank(rank: int, counts: tuple[int, ...]) -> dict[str, Tensor]:
    memory, index = _memory(), torch.tensor([8, 1, 3, 4, 6, 0, 5])
    memory.stage(index.split(counts)[rank], _rows(7).split(counts)[rank])
    memory.commit()
    memory.cluster(2, 0)
    return dict(memory.state_dict())


@pytest.mark.parametrize("counts", [(4, 3), (1, 6), (2, 1, 4)])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    one = _on_rank(0, (7,))
    for result in ranks(len(counts), _on_rank, counts):
        torch.testing.assert_close(result, one, rtol=1e-12, atol=1e-15)


def test_saving_keeps_rows_clusters_and_their_epoch() -> None:
    memory, again = _memory(), _memory()
    memory.stage(torch.arange(9), _rows(9))
    memory.commit()
    memory.cluster(5, 0)
    again.load_state_dict(memory.state_dict())
    assert int(again.epoch) == 5
    assert torch.equal(again.assignments, memory.assignments)
    assert all(map(torch.equal, again.centroids, memory.centroids))
    assert set(memory_buffers(memory)) == set(memory.state_dict())


def test_rows_may_be_bfloat16() -> None:
    memory = ClusterMemory(9, 3, [4], dtype=torch.bfloat16)
    memory.stage(torch.arange(9), _rows(9).float())
    memory.commit()
    memory.cluster(0, 0)
    assert memory.rows.dtype == torch.bfloat16
    assert memory.centroids[0].dtype == torch.float32
    assert (memory.assignments >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, [2]), r"\(0, 2, 3\)"),
        ((4, 3, []), r"clusters \[\]"),
        ((4, 3, [2, 0]), r"clusters \[2, 0\]"),
    ],
)
def test_sizes_below_one_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterMemory(*arguments)


def test_other_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"values \(2, 2, 3\), got \(2,\) and \(2, 3\)"):
        _memory().stage(torch.arange(2), torch.ones(2, 3))
