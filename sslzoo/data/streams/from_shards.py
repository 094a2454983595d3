"""FromShards: what data modules of shards have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.checks import check_at_least
from sslzoo.data.datamodule import OnBroken, SampleDataModule
from sslzoo.data.listing import check_known
from sslzoo.data.streams.order import ShardOrder
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.shard_images import Shuffle
from sslzoo.data.streams.shards import Shards
from sslzoo.data.streams.sources import Found, open_shards


def checked_shuffle(shards: int, samples: int) -> Shuffle:
    """How an epoch mixes shards, from a data module's arguments."""
    check_at_least("shuffle_shards", shards, 0)
    check_at_least("shuffle_samples", samples, 1)
    return Shuffle(shards, samples)


class FromShards(SampleDataModule):
    """A data module whose training set has an `order()` of shards.

    Attributes:
        keys: of the image, of the label and of the captions; see `open_shards`.
        shuffle: how an epoch mixes shards.
        cache: downloads addresses.
        on_broken: see `ImageShards`.
        classes: names of the classes.
        given_classes: number of classes that was given.
        named: whether the names were given.
    """

    keys: tuple[str | None, str | None, str | None]
    classes: Any  # list[str], or None
    given_classes: int | None
    named: bool
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
        image, label, caption = self.keys
        skip = self.on_broken == "skip"
        found = open_shards(names, image, label, self.cache, skip, lone, caption)
        if found.left_out:
            rank_zero_warn(
                f"{len(found.left_out)} shards are left out, which cannot be read, such as "
                f"{found.left_out[0]}"
            )
        return found

    def check_labels(self, labeled: bool) -> None:
        """Refuse training shards without labels where classes are given.

        Raises:
            ValueError: `num_classes` or `classes` are given, and "auto" found no labels.
        """
        if labeled or self.keys[1] != "auto" or not (self.given_classes or self.named):
            return
        raise ValueError(
            "the shards must have labels where num_classes or classes are given, got none under "
            "the usual names (a member .cls, a column or key 'label'); set label_key to their "
            "name, or to null for no labels"
        )

    def numbering(self, shards: Shards, source: str | Sequence[str]) -> dict[str, Any]:
        """How labels become class numbers, as arguments of `ShardImages`.

        Raises:
            ValueError: the shards have classes that training lacks, or in another order.
        """
        if self.classes and shards.classes is not None:
            check_known(shards.classes, self.classes, f"the shards {source}")
            if list(shards.classes) != self.classes[: len(shards.classes)]:
                raise ValueError(
                    f"classes must be {list(shards.classes)[:5]}, those of {source}, got "
                    f"{self.classes[:5]}"
                )
        return {
            "classes": self.classes or shards.classes,
            "num_classes": self.given_classes,
            "named": self.named and shards.classes is None,  # else texts of digits are numbers
        }
