"""Hugging Face's iterable sets, whose shards are read forward."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from sslzoo.data.streams.shards import BLOCK, Recent, Sample, Shards

# Steps of Hugging Face's sets that give other items when the set is split by shard.
_WHOLE = (
    *("TakeExamplesIterable", "SkipExamplesIterable"),
    *("CyclingMultiSourcesExamplesIterable", "RandomlyCyclingMultiSourcesExamplesIterable"),
)


class IterableShards(Shards):
    """The shards of a `datasets.IterableDataset`, read in blocks of consecutive samples.

    A process goes on within a shard where it stopped; for another block it goes there from the
    start of that shard, not of the stream, by the library's `skip`, which does not decode. A set
    whose shards, read one by one, would give other items is read as one shard, in its own order:
    that of `take`, `skip`, `interleave_datasets` or `map(with_indices=True)`.

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
        check_reproducible(dataset)
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
        return _undecoded(_one_shard(self.dataset, len(self.counts), shard), self.columns[0])

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


def check_reproducible(dataset: Any) -> None:
    """Refuse an iterable set of Hugging Face that gives each process other samples.

    Shuffled without a seed, each process has an order of its own, since numpy then draws 128 bits
    from the system.

    Raises:
        ValueError: it is shuffled without a seed, or one of `split_dataset_by_node`.
    """
    if getattr(dataset, "_distributed", None) is not None:
        raise ValueError(
            "an iterable data set must be the whole set, which sslzoo splits over ranks itself, "
            "got one of split_dataset_by_node; give the set before it was split"
        )
    for one in _steps(dataset):
        generator = getattr(one, "generator", None)
        seeds = getattr(getattr(generator, "bit_generator", None), "seed_seq", None)
        entropy = getattr(seeds, "entropy", 0)
        if isinstance(entropy, int) and entropy.bit_length() > 64:
            raise ValueError(
                "an iterable data set must be shuffled with a seed, or each process gets other "
                "samples, got shuffle() without one; use shuffle(seed=0, ...)"
            )


def _steps(dataset: Any) -> Iterator[Any]:
    """The steps of which an iterable set is made, such as a shuffle, a filter and a source."""
    left = [getattr(dataset, "_ex_iterable", None)]
    while left:
        one = left.pop()
        if one is not None:
            yield one
            left += _before(one)


def _before(step: Any) -> list[Any]:
    """The steps from which a step takes its items."""
    one = getattr(step, "ex_iterable", None)
    return ([] if one is None else [one]) + list(getattr(step, "ex_iterables", ()))


def _num_shards(dataset: Any) -> int:
    """Number of shards that can be read one by one; 1 if these would give other items."""

    def counts_over_shards(step: Any) -> bool:
        given = getattr(step, "with_indices", False) or getattr(step, "drop_last_batch", False)
        return given or type(step).__name__ in _WHOLE

    return 1 if any(map(counts_over_shards, _steps(dataset))) else int(dataset.num_shards)


def _one_shard(dataset: Any, shards: int, index: int) -> Any:
    return dataset if shards == 1 else dataset.shard(num_shards=shards, index=index)


def _is_endless(step: Any) -> bool:
    """Whether a step of an iterable set never ends."""
    if step is None or type(step).__name__ == "TakeExamplesIterable":
        return False
    if type(step).__name__ == "RepeatExamplesIterable" and step.num_times is None:
        return True
    ends_first = getattr(step, "stopping_strategy", None) == "first_exhausted"
    before = list(map(_is_endless, _before(step)))
    return bool(before) and (all(before) if ends_first else any(before))


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
    """Samples per shard, by one pass that decodes nothing.

    Raises:
        ValueError: the set has no end.
    """
    if _is_endless(getattr(dataset, "_ex_iterable", None)):
        raise ValueError(
            "an iterable data set must have an end, since its samples are counted, got one of "
            "repeat(None); give the set before it is repeated, or set num_samples"
        )
    begin = time.perf_counter()
    small = columns[1]
    light = dataset.select_columns([small]) if small in (dataset.column_names or ()) else dataset
    light = _undecoded(light, columns[0])
    shards = _num_shards(light)
    counts = [
        sum(
            len(next(iter(block.values())))
            for block in _one_shard(light, shards, i).iter(batch_size=BLOCK)
        )
        for i in range(shards)
    ]
    seconds = time.perf_counter() - begin
    rank_zero_info(
        f"Counted {sum(counts):,} samples in {shards} shards of the iterable set in {seconds:.1f} s"
    )
    return counts
