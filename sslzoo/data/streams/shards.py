"""Shards: the base class of the formats, whose samples are read by (shard, offset).

S shards, N samples. Sample i of the set is (shard, offset), with the shards one behind the other.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from sslzoo.data.streams.order import even_blocks
from sslzoo.eval.fingerprint import text_digest

BLOCK = 256  # samples that lie together in the order of an epoch, where a format has no blocks
Opened = TypeVar("Opened")


def path_of(name: str) -> str:
    """A file's name, or an address without its query, such as `?download=true`."""
    return name.partition("?")[0] if "://" in name else name


class Sample(NamedTuple):
    """One sample as it is stored.

    Attributes:
        image: an encoded image (JPEG, PNG, .npy, ...), or a PIL image or array.
        label: the class as a number or a name; None without labels.
        caption: a text, or several; None without captions.
    """

    image: Any
    label: Any
    caption: Any = None


class Fields(NamedTuple):
    """The columns of Parquet, or the keys of LitData, that are read.

    Attributes:
        image: that of the image.
        label: that of the label; None: no labels.
        caption: that of the captions; None: no captions.
    """

    image: str
    label: str | None = None
    caption: str | None = None


class Shards(ABC):
    """S shards of one format.

    Args:
        names: S files or addresses, for errors.
        counts: (S,) samples per shard.

    Attributes:
        classes: names of the classes, if the format knows them.
        is_remote: whether shards are downloaded before they are read.
        is_forward: whether the blocks of a shard are best read in order.
    """

    classes: Sequence[str] | None = None
    is_remote: bool = False
    is_forward: bool = False

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        self.names = list(names)
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        if (self.counts < 0).any():
            raise ValueError(
                f"a shard must have at least 0 samples, got {self.counts.min()} for "
                f"{self.names[int(self.counts.argmin())]}"
            )
        if not self.starts[-1]:
            raise ValueError(f"shards must have samples, got none in {self.names[:3]}")
        times = Counter(map(os.path.abspath, self.names))
        if len(times) < len(self.names):
            raise ValueError(
                f"each shard must be given once, got {times.most_common(1)[0][0]} twice"
            )

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, index: int) -> tuple[int, int]:
        """The shard and the offset in it of a sample."""
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])

    def blocks(self, shard: int) -> Sequence[int]:
        """Sizes of a shard's runs of samples that are read together."""
        return even_blocks(int(self.counts[shard]), BLOCK)

    @abstractmethod
    def read(self, shard: int, offset: int) -> Sample:
        """Read one sample.

        Raises:
            Exception: the sample is missing or cannot be read; the caller names shard and offset.
        """

    @abstractmethod
    def again(self, recent: int) -> Shards:
        """The same shards for another reader, with no open files.

        Args:
            recent: number of samples from which an epoch draws at a time.
        """

    def file_sizes(self) -> Sequence[int] | None:
        """Bytes of each shard, the same wherever it lies; None if they are not known."""
        return None

    def identity(self) -> list[str]:
        """What tells the shards from others: the names and sizes of their files, in order."""
        sizes = self.file_sizes() or ()
        return [path_of(name).rpartition("/")[2] for name in self.names] + list(map(str, sizes))

    def fetch(self, shards: Sequence[int]) -> None:
        """Download shards, so that reading them does not wait; called in a thread."""
        return

    def fingerprint(self) -> str | None:
        """Hash of everything that the samples depend on; None if unknown."""
        sizes = (self.file_sizes() or ()) if self.is_remote else ()
        return text_digest([*self.names, *map(str, self.counts.tolist()), *map(str, sizes)])


class Recent(Generic[Opened]):
    """What was opened or read last, such as files or blocks of samples.

    It is empty in another process, since forked processes may not share what is open.

    Args:
        most: total weight that is kept; what was used last stays in any case.
        weight: gives the weight of one; None: 1.
    """

    def __init__(self, most: int, weight: Callable[[Opened], int] | None = None) -> None:
        self.most, self._weight = most, weight
        self._clear()

    def _clear(self) -> None:
        self._kept: OrderedDict[Any, Opened] = OrderedDict()
        self._total, self._process = 0, os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most, "_weight": self._weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def get(self, key: Any, make: Callable[[], Opened]) -> Opened:
        """The object under a key, made by `make` if it is not kept."""
        if self._process != os.getpid():
            self._clear()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        self._kept[key] = found = make()
        self._total += self._weigh(found)
        while self._total > self.most and len(self._kept) > 1:
            self._total -= self._weigh(self._kept.popitem(last=False)[1])
        return found

    def _weigh(self, found: Opened) -> int:
        return 1 if self._weight is None else self._weight(found)


def library(name: str, what: str) -> Any:
    """Import a library of the extra `streams`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"reading {what} needs the package {package}, which is not installed; run pip install "
            "'sslzoo[streams]'"
        ) from error
