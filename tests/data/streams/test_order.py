"""Each sample comes once, from a few shards at a time, in an order that may be entered anywhere."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from sslzoo.data.sampler import KeyedSampler
from sslzoo.data.streams.order import ShardOrder, even_blocks

COUNTS = [5, 0, 17, 1, 9, 30, 2, 8]
TOTAL = sum(COUNTS)


def order(
    shuffle_shards: int = 3, shuffle_samples: int = 10, is_forward: bool = False
) -> ShardOrder:
    counts = np.array(COUNTS)
    return ShardOrder(
        counts, lambda s: even_blocks(COUNTS[s], 4), shuffle_shards, shuffle_samples, is_forward
    )


def whole(given: ShardOrder, seed: int = 0, epoch: int = 0, first: int = 0) -> list[int]:
    return list(chain(*(piece.tolist() for piece in given.pieces(seed, epoch, first))))


def shard_of(sample: int) -> int:
    return int(np.searchsorted(np.cumsum(COUNTS), sample, side="right"))


@pytest.mark.parametrize("is_forward", [False, True])
@pytest.mark.parametrize(("shards", "samples"), [(1, 1), (2, 7), (3, 10), (8, 1000)])
def test_each_sample_comes_once_and_any_position_is_an_entry(
    shards: int, samples: int, is_forward: bool
):
    given = order(shards, samples, is_forward)
    for epoch in range(2):
        found = whole(given, 4, epoch)
        assert sorted(found) == list(range(TOTAL))
        for first in range(epoch, TOTAL + 1, 5):
            assert whole(given, 4, epoch, first) == found[first:]
    assert whole(given, 4, 0) != whole(given, 4, 1)
    assert whole(given, 4, 0) != whole(given, 5, 0)


def test_at_most_so_many_shards_are_mixed():
    given = order(shuffle_shards=3)
    found = [shard_of(sample) for sample in whole(given)]
    queue = given.shards(0, 0).tolist()
    for start in range(0, len(queue), 3):
        group = set(queue[start : start + 3])
        size = sum(COUNTS[shard] for shard in group)
        assert set(found[:size]) == {shard for shard in group if COUNTS[shard]}
        found = found[size:]
    assert not found


def test_without_shuffling_shards_the_order_is_that_of_the_shards():
    assert whole(order(shuffle_shards=0, shuffle_samples=10)) == list(range(TOTAL))


def test_a_forward_shard_is_read_by_blocks_in_order():
    found = whole(order(shuffle_samples=1, is_forward=True))
    for shard in range(len(COUNTS)):
        own = [sample for sample in found if shard_of(sample) == shard]
        assert own == sorted(own)
    mixed = whole(order(shuffle_samples=1))
    own = [sample for sample in mixed if shard_of(sample) == 5]
    assert own != sorted(own)


def test_every_position_may_hold_every_sample():
    counts = torch.zeros(9)
    given = ShardOrder(np.array([3, 3, 3]), lambda s: [2, 1], 3, 9)
    for epoch in range(225):
        counts[next(iter(given.pieces(0, epoch)))[0]] += 1
    assert ((counts - 25) ** 2 / 25).sum() < 26.1  # chi squared, 8 degrees, p = 0.001


@pytest.mark.parametrize("drop_last", [True, False])
def test_global_batches_are_the_same_for_any_number_of_ranks(drop_last: bool):
    def global_batches(world: int, first: int = 0) -> list[list[int]]:
        parts = []
        for rank in range(world):
            sampler = KeyedSampler(
                *(TOTAL, 12, 3, drop_last), rank=rank, world=world, order=order()
            )
            sampler.set_epoch(1)
            sampler.first_batch = first
            index = list(sampler)
            assert len(index) == len(sampler) - first * sampler.rank_batch
            size = sampler.rank_batch
            parts.append([index[i : i + size] for i in range(0, len(index), size)])
        return [list(chain(*blocks)) for blocks in zip(*parts, strict=True)]

    expected = whole(order(), 3, 1)
    one = [expected[i : i + 12] for i in range(0, TOTAL, 12)]
    one = one[: TOTAL // 12] if drop_last else one
    for world in (1, 2, 3):
        assert global_batches(world) == one
        assert global_batches(world, 2) == one[2:]


def test_the_state_names_the_shard_and_offset_of_the_next_sample():
    given, starts = order(), np.cumsum([0, *COUNTS])
    found = whole(given, 4, 1)
    for first in range(0, TOTAL, 7):
        state = given.state(4, 1, first)
        assert starts[state["shard"]] + state["offset"] == found[first]
        assert state["offset"] < COUNTS[state["shard"]]
    ended = {"order": given.digest(), "files": given.files, "shard": None, "offset": None}
    assert given.state(4, 1, TOTAL) == ended


def test_the_digest_tells_other_orders():
    digests = {order(*given).digest() for given in [(3, 10), (3, 11), (2, 10)]}
    other = ShardOrder(np.array([1, 2]), lambda s: [1], 3, 10)
    assert len(digests | {other.digest(), order().digest()}) == 4


def test_wrong_numbers_are_refused():
    for given in [(-1, 10), (3, 0)]:
        with pytest.raises(ValueError, match=r"shuffle_(shards|samples) must be at least"):
            order(*given)
