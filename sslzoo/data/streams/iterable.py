"""Hugging Face's iterable sets, whose shards are read forward."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from sslzoo.data.streams.shards import BLOCK, Recent, Sample, Shards


class IterableShards(Shards):
    """The shards of a `datasets.IterableDataset`, read in blocks of consecutive samples.

    A process goes on within a shard where it stopped; for another block it goes there from the
    start of that shard, not of the stream, by the library's `skip`, which does not decode.

    Args:
        dataset: the iterable set, whose shards give the same items each time.
        columns: the column of images, and that of labels or None.
        counts: samples per shard; None: one pass counts them.
        recent: see `Shards.again`.
    """

    is_forward = True

    def __init__(
        self,
        dataset: Any,
        columns: tuple[str, str | None],
        counts: Sequence[int] | None = None,
        recent: int = 1,
    ) -> None:
        self.dataset, self.columns = dataset, columns
        check_seeded(dataset)
        counts = _counted(dataset, columns) if counts is None else counts
        super().__init__([f"shard {i} of the iterable set" for i in range(len(counts))], counts)
        self.classes = getattr((dataset.features or {}).get(columns[1]), "names", None)
        self._iterators: Recent[_Forward] = Recent(64)
        self._blocks: Recent[list[Any]] = Recent(recent + 2 * BLOCK, len)

    def again(self, recent: int) -> IterableShards:
        return IterableShards(self.dataset, self.columns, self.counts.tolist(), recent)

    def read(self, shard: int, offset: int) -> Sample:
        number, within = divmod(offset, BLOCK)
        items = self._blocks.get((shard, number), lambda: self._read(shard, number))
        if within >= len(items):
            raise ValueError(f"the shard ended after {number * BLOCK + len(items)} samples")
        image, label = self.columns
        item = items[within]
        missing = [key for key in self.columns if key is not None and item.get(key) is None]
        if missing:
            raise ValueError(f"a sample must have {missing[0]!r}, got {sorted(item)}")
        found = item[image]
        if isinstance(found, Mapping):
            found = found.get("bytes") or open(found["path"], "rb").read()  # noqa: SIM115
        return Sample(found, None if label is None else item[label])

    def _read(self, shard: int, number: int) -> list[Any]:
        start = number * BLOCK
        forward = self._iterators.get(shard, lambda: _Forward(self._shard(shard)))
        return forward.read(start)

    def _shard(self, shard: int) -> Any:
        one = self.dataset.shard(num_shards=len(self.counts), index=shard)
        return _undecoded(one, self.columns[0])

    def fingerprint(self) -> None:
        return None


class _Forward:
    """A shard that is read forward; an earlier or a later block is reached by `skip`."""

    def __init__(self, shard: Any) -> None:
        self._shard = shard
        self._blocks: Iterator[dict[str, list[Any]]] = iter(())
        self._at: int | None = None

    def read(self, start: int) -> list[dict[str, Any]]:
        """The items of a block."""
        if start != self._at:
            shard = self._shard.skip(start) if start else self._shard
            self._blocks = shard.iter(batch_size=BLOCK)  # `iter(shard)` splits it over workers
        columns = next(self._blocks, {})
        items = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        self._at = start + len(items)
        return items


def check_seeded(dataset: Any) -> None:
    """Refuse an iterable set of Hugging Face that is shuffled without a seed.

    Without one, numpy draws 128 bits from the system, so each process has an order of its own.

    Raises:
        ValueError: it is.
    """
    left = [getattr(dataset, "_ex_iterable", None)]
    while left:
        one = left.pop()
        if one is None:
            continue
        generator = getattr(one, "generator", None)
        seeds = getattr(getattr(generator, "bit_generator", None), "seed_seq", None)
        entropy = getattr(seeds, "entropy", 0)
        if isinstance(entropy, int) and entropy.bit_length() > 64:
            raise ValueError(
                "an iterable data set must be shuffled with a seed, or each process gets other "
                "samples, got shuffle() without one; use shuffle(seed=0, ...)"
            )
        left += [getattr(one, "ex_iterable", None), *getattr(one, "ex_iterables", ())]


def is_sharded(dataset: Any) -> bool:
    """Whether it is an iterable set with shards, as those of Hugging Face are."""
    return all(hasattr(dataset, name) for name in ("num_shards", "shard", "skip", "iter"))


def _undecoded(dataset: Any, column: str) -> Any:
    """The same items as Python's values, with the bytes of images, decoded if they are used."""
    dataset = dataset.with_format(None)
    feature: Any = (dataset.features or {}).get(column)
    if not hasattr(feature, "decode"):
        return dataset
    return dataset.cast_column(column, type(feature)(decode=False))


def _counted(dataset: Any, columns: tuple[str, str | None]) -> list[int]:
    """Samples per shard, by one pass that decodes nothing."""
    begin = time.perf_counter()
    small = columns[1]
    light = dataset.select_columns([small]) if small in (dataset.column_names or ()) else dataset
    light = _undecoded(light, columns[0])
    shards = light.num_shards
    counts = [
        sum(
            len(next(iter(block.values())))
            for block in light.shard(num_shards=shards, index=i).iter(batch_size=BLOCK)
        )
        for i in range(shards)
    ]
    seconds = time.perf_counter() - begin
    rank_zero_info(
        f"Counted {sum(counts):,} samples in {shards} shards of the iterable set in {seconds:.1f} s"
    )
    return counts
