"""The same global batches for any number of ranks, nothing padded, nothing twice."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from sslzoo.data.loader import TrainLoader
from sslzoo.data.sampler import KeyedSampler, ShardedBatchSampler
from tests.data.toys import ToyData
from tests.ranks import Ranks


def batches(n: int, batch: int, world: int, epoch: int = 0, **options: bool) -> list[list[int]]:
    """Global batches: the ranks' batches, one behind the other."""
    parts = []
    for rank in range(world):
        sampler = KeyedSampler(n, batch, seed=3, rank=rank, world=world, **options)
        sampler.set_epoch(epoch)
        index = list(sampler)
        assert len(index) == len(sampler)
        size = sampler.rank_batch
        parts.append([index[i : i + size] for i in range(0, len(index), size)])
        assert len(parts[-1]) == sampler.num_batches
    return [list(chain(*blocks)) for blocks in zip(*parts, strict=True)]


@pytest.mark.parametrize("world", [2, 3, 6])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("n", [24, 31, 36, 42])
def test_global_batches_are_those_of_one_process(n: int, world: int, drop_last: bool):
    for epoch in range(2):
        one = batches(n, 12, 1, epoch, drop_last=drop_last)
        assert batches(n, 12, world, epoch, drop_last=drop_last) == one


def test_each_sample_comes_once_and_the_short_batch_is_shared():
    assert sorted(chain(*batches(29, 12, 3, drop_last=False))) == list(range(29))
    sizes = [len(KeyedSampler(29, 12, drop_last=False, rank=r, world=3)) for r in range(3)]
    assert sizes == [10, 10, 9]
    kept = list(chain(*batches(29, 12, 3)))
    assert len(set(kept)) == len(kept) == 24


def test_epochs_and_seeds_differ_and_repeat():
    assert batches(40, 8, 1, 0) != batches(40, 8, 1, 1)
    assert batches(40, 8, 1, 1) == batches(40, 8, 1, 1)
    assert list(KeyedSampler(40, 8, seed=1)) != list(KeyedSampler(40, 8, seed=2))
    assert list(KeyedSampler(9, 4, shuffle=False)) == list(range(8))


def test_first_positions_are_uniform():
    counts = torch.zeros(5)
    for epoch in range(2000):
        counts[batches(5, 5, 1, epoch)[0][0]] += 1
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # chi squared, 4 degrees, p = 0.001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 11), "at most 10 .*training set.*, got 11"),
        ((10, 0), "got 0"),
        ((10, 5, 0, True, True, 0, 2), r"multiple of the 2 rank\(s\), got 5"),
        ((13, 6, 0, False, True, 0, 2), "one sample for each of 2 ranks, got 1"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        KeyedSampler(*arguments)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_whole_batches_are_dealt_to_ranks(world: int):
    parts = [list(ShardedBatchSampler(10, 3, rank, world)) for rank in range(world)]
    assert [len(ShardedBatchSampler(10, 3, rank, world)) for rank in range(world)] == [
        len(part) for part in parts
    ]
    whole = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [parts[t % world][t // world] for t in range(4)] == whole
    assert sum(map(len, parts)) == 4


def train_and_evaluate(rank: int) -> tuple[list, list]:
    data = ToyData(num_samples=23, batch_size=6)
    data.setup("fit")
    train = [data.train_views(batch, 0) for batch in data.train_dataloader()]
    loaders = data.eval_dataloaders()
    assert loaders.sharded
    return (
        [(batch.index.tolist(), batch.views[1][:, 0, 0, 0].tolist()) for batch in train],
        [batch.index.tolist() for batch in loaders.bank],
    )


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_and_views_of_one_process(ranks: Ranks, world: int):
    train, bank = train_and_evaluate(0)
    results = ranks(world, train_and_evaluate)
    joined = [
        (list(chain(*(p[0] for p in parts))), list(chain(*(p[1] for p in parts))))
        for parts in zip(*(result[0] for result in results), strict=True)
    ]
    assert joined == train
    assert sorted(chain(*(result[1] for result in results))) == bank


def test_a_plain_loop_resumes_inside_an_epoch_and_at_its_end():
    data = ToyData()
    data.setup("fit")
    epochs = []
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        epochs.append([batch.index.tolist() for batch in loader])
    loader = data.train_dataloader()
    for position, _ in enumerate(loader, 1):
        resumed = data.train_dataloader()
        resumed.load_state_dict(loader.state_dict())
        assert resumed.state_dict() == {**loader.state_dict(), **(
            {"epoch": 1, "position": 0} if position == len(loader) else {}
        )}  # fmt: skip
        left = epochs[0][position:] or epochs[1]
        assert len(resumed) == 5
        assert [batch.index.tolist() for batch in resumed] == left


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_generator_is_left_alone(num_workers: int):
    data = ToyData()
    data.setup("fit")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loader = TrainLoader(data.sets.train, KeyedSampler(23, 4), num_workers)
    for _ in range(2):
        assert len(list(loader)) == 5
    list(data.eval_dataloaders().bank)
    loader.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_last_incomplete_batch_is_known_beforehand() -> None:
    assert KeyedSampler(10, 4, rank=0, world=2, drop_last=False).last_batch == 2
    assert KeyedSampler(10, 4, rank=0, world=2).last_batch == 0
    assert KeyedSampler(8, 4, rank=0, world=2, drop_last=False).last_batch == 0
