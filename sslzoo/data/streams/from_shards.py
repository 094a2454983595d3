"""FromShards: what data modules of shards have in common."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.checks import check_at_least
from sslzoo.data.datamodule import OnBroken, SampleDataModule
from sslzoo.data.streams.order import ShardOrder
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.shard_images import Shuffle
from sslzoo.data.streams.sources import Found, open_shards


def checked_shuffle(shards: int, samples: int) -> Shuffle:
    """How an epoch mixes shards, from a data module's arguments."""
    check_at_least("shuffle_shards", shards, 0)
    check_at_least("shuffle_samples", samples, 1)
    return Shuffle(shards, samples)


class FromShards(SampleDataModule):
    """A data module whose training set has an `order()` of shards.

    Attributes:
        keys: of the image, and of the label or caption; see `open_shards`.
        shuffle: how an epoch mixes shards.
        cache: downloads addresses.
        on_broken: see `ImageShards`.
    """

    keys: tuple[str | None, str | None]
    shuffle: Shuffle
    cache: ShardCache
    on_broken: OnBroken

    def order(self) -> ShardOrder:
        order: ShardOrder = self.sets.train.order()
        return order

    def shuffles(self) -> bool:
        return self.shuffle.shards > 0

    def find_shards(self, source: str | Sequence[str], lone: bool = False) -> Found:
        """Open shards, and say which cannot be read at all."""
        names = [source] if isinstance(source, str) else list(source)
        for name in names:
            self.cache.check(name)
        found = open_shards(names, *self.keys, self.cache, self.on_broken == "skip", lone)
        if found.left_out:
            rank_zero_warn(
                f"{len(found.left_out)} shards are left out, which cannot be read, such as "
                f"{found.left_out[0]}"
            )
        return found
