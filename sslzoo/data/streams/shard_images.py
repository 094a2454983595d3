"""ShardImages: the images of shards, decoded and cropped where they are read."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.datamodule import OnBroken, readable_rows
from sslzoo.data.image.decode import BROKEN, say_conversion
from sslzoo.data.image.image_set import Crops, Cut, ImageSet, stack_boxes
from sslzoo.data.image.rasters import array_raster, open_encoded
from sslzoo.data.listing import spread
from sslzoo.data.streams.order import ShardOrder
from sslzoo.data.streams.shards import Sample, Shards
from sslzoo.eval.fingerprint import described, tensor_digest
from sslzoo.eval.loaders import BrokenBatchError
from sslzoo.random import Keys
from sslzoo.transforms.image.pixels import Decoding, Raster, num_channels, stack_pixels
from sslzoo.value_range import TooDarkError, ValueRangeError

_SAMPLE = 16  # samples that are read before training


class Shuffle(NamedTuple):
    """How an epoch mixes shards; see `ShardOrder`.

    Attributes:
        shards: number of shards that are mixed.
        samples: number of samples that are permuted together.
    """

    shards: int = 8
    samples: int = 4096


class ShardImages(ImageSet):
    """N images in shards, read by their index, of which (shard, offset) is a function.

    With `on_broken="skip"`, an image that cannot be read is marked in `broken`, and its row of a
    batch is filled or dropped as `FileImages` does.

    Args:
        shards: the shards.
        classes: names of the classes, for labels that are names; None: labels are numbers.
        decoding: how an image becomes pixels.
        shuffle: how an epoch mixes shards.
        on_broken: raise an "error" for a sample that cannot be read, or "skip" and count it.
        left_out: see `SampleSet`.
        caption: the captions of an image, as stored -> as `read_rows` gives them; None: they are
            not read.
        num_classes: number of classes, below which labels must be; None: that of `classes`.
        named: whether labels are names of `classes` even where these are digits; otherwise texts
            of digits are class numbers.
        skipped: errors that are skipped though `on_broken` is "error".
    """

    def __init__(
        self,
        shards: Shards,
        classes: Sequence[str] | None,
        decoding: Decoding,
        shuffle: Shuffle,
        on_broken: OnBroken = "error",
        left_out: int = 0,
        caption: Callable[[Any], Any] | None = None,
        num_classes: int | None = None,
        named: bool = False,
        skipped: tuple[type[Exception], ...] = (),
    ) -> None:
        self.shards, self.decoding, self.shuffle = shards, decoding, shuffle
        self.caption = caption
        self.numbers = None if classes is None else {name: i for i, name in enumerate(classes)}
        self.num_classes = num_classes or (None if classes is None else len(classes))
        self.named = named and any(name.isdigit() for name in self.numbers or ())
        self.channels = decoding.channels
        self.needs_crops = True
        self.labels = None  # they are read with the images
        self.skipped = BROKEN if on_broken == "skip" else skipped
        self.left_out = left_out
        self.crops: Crops | None = None
        self.keep_size = True
        self.rows: Tensor | None = None
        skips = len(shards) if self.skipped else 0
        self.broken = torch.zeros(skips, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.shards) if self.rows is None else len(self.rows)

    @property
    def num_broken(self) -> int:
        return self.left_out + int(self.broken.sum())

    def fingerprint(self) -> str | None:
        own = self.shards.fingerprint()
        if own is None:
            return None
        rows = "" if self.rows is None else tensor_digest({"rows": self.rows})
        given = self.decoding._replace(may_be_dark=False)
        named = " named" if self.named else ""
        return f"{own} {rows} {described(tuple(given))} {self.numbers}{named}"

    def subset(self, rows: Tensor) -> ShardImages:
        other = self._copy()
        other.rows = rows if self.rows is None else self.rows[rows]
        return other

    def cropped(self, crops: Crops, keep_size: bool) -> ShardImages:
        other = self._copy()
        other.crops, other.keep_size = crops, keep_size
        return other

    def _copy(self) -> ShardImages:
        other = ShardImages.__new__(ShardImages)
        other.__dict__.update(self.__dict__)  # `broken` is shared, so that both count the same
        other.shards = self.shards.again(self.shuffle.samples)
        return other

    def order(self) -> ShardOrder:
        """The order of an epoch's samples."""
        shards, given = self.shards, self.shuffle
        settings: Any = given.shards, given.samples, shards.is_forward
        settings += (self._ahead if shards.is_remote else None, shards.identity)
        if self.rows is None:
            return ShardOrder(shards.counts, shards.blocks, *settings)
        rows = self.rows.numpy()

        def blocks(shard: int) -> list[int]:
            edges = shards.starts[shard] + np.cumsum([0, *shards.blocks(shard)])
            sizes = np.diff(np.searchsorted(rows, edges))
            return [int(size) for size in sizes if size]

        return ShardOrder(np.diff(np.searchsorted(rows, shards.starts)), blocks, *settings)

    def _ahead(self, shards: list[int]) -> None:
        """Download shards in a thread; a failure is reported where they are read."""

        def fetch() -> None:
            with suppress(Exception):
                self.shards.fetch(shards)

        Thread(target=fetch, daemon=True).start()

    def side(self, wanted: int | None) -> int | None:
        """The shorter side of a few images, if all have one."""
        found = set()
        for row in self._few():
            try:
                with self._open(self._read(row)) as image:
                    found.add(min(image.size))
            except BROKEN:
                continue  # reading a batch reports it
        return found.pop() if len(found) == 1 else None

    def checked(self) -> ShardImages:
        """The same images, after a few are read: with their channels if these are not given.

        Raises:
            ValueError: an image cannot be read, or its values are not pixels; or none of 16 bits
                has more than 12.
        """
        dark: ValueError | None = None
        bright = False
        channels = self.channels
        modes: dict[str, str] = {}
        for row in self._few():
            try:
                sample = self._read(row)
                with self._open(sample) as image:
                    own = image.shape[0] if isinstance(image, Raster) else num_channels(image)
                    if isinstance(image, Image.Image):
                        modes.setdefault(image.mode, self.where(row))
                    channels = channels or own
                    bright |= self.decoding._replace(channels=channels)(image).is_floating_point()
                self._beside(sample)
            except TooDarkError as error:
                dark = dark or self.error(row, error)
            except BROKEN as error:
                if not isinstance(error, self.skipped) or isinstance(error, ValueRangeError):
                    raise self.error(row, error) from error
        if dark is not None and not bright:
            raise dark
        say_conversion(modes, channels)
        other = self._copy()
        other.decoding = self.decoding._replace(may_be_dark=True, channels=channels)
        other.channels = channels
        return other

    def _few(self) -> list[int]:
        """Evenly spaced rows; of shards that must be downloaded, those of the first."""
        first = int(self.order().counts[0]) if self.shards.is_remote else len(self)
        return spread(first or 1, _SAMPLE)

    def has_labels(self) -> bool:
        """Whether the first sample that can be read has a label."""
        for row in self._few():
            try:
                return self._read(row).label is not None
            except BROKEN:
                continue
        return False

    def __getitems__(self, index: list[int]) -> Batch:
        return self.read_rows(index)[0]

    def read_rows(self, index: list[int]) -> tuple[Batch, list[Any]]:
        """A batch, and what `caption` made of the captions of its rows."""
        if self.crops is None:
            raise ValueError("crops must be set to read a batch, got None; use `cropped(...)`")
        key = self.crops.keys(torch.tensor(index)).key
        order = sorted(range(len(index)), key=lambda row: index[row])  # as they lie in the shards
        read: dict[int, tuple[Cut, Tensor | None, Any] | None] = {
            row: self._cut(index[row], Keys(key[row : row + 1])) for row in order
        }
        rows = readable_rows([read[row] is not None for row in range(len(index))], self.keep_size)
        if not rows:
            raise BrokenBatchError(
                f"all {len(index)} images of a batch are broken, the first is "
                f"{self.where(index[0])}"
            )
        found = [sample for row in rows if (sample := read[row]) is not None]
        cuts = [cut for cut, *_ in found]
        views = [stack_pixels(view) for view in zip(*(cut.views for cut in cuts), strict=True)]
        kept = torch.tensor([index[row] for row in rows])
        labels = [label for _, label, _ in found if label is not None]
        label = torch.stack(labels) if labels else None
        return Batch(views, kept, label, stack_boxes(cuts)), [caption for *_, caption in found]

    def _cut(self, row: int, keys: Keys) -> tuple[Cut, Tensor | None, Any] | None:
        assert self.crops is not None
        try:
            sample = self._read(row)
            with self._open(sample) as image:
                cut = self.crops.cut(image, keys, self.decoding)
                return cut, *self._beside(sample)
        except ValueRangeError as error:
            raise self.error(row, error) from error
        except BROKEN as error:
            if not isinstance(error, self.skipped):
                raise self.error(row, error) from error
            number = row if self.rows is None else int(self.rows[row])
            if not self.broken[number]:
                self.broken[number] = True
                warnings.warn(f"skipped a broken sample: {self.where(row)}", stacklevel=2)
            return None

    def _read(self, row: int) -> Sample:
        return self.shards.read(*self.place(row))

    def place(self, row: int) -> tuple[int, int]:
        """The shard and the offset in it of a sample."""
        return self.shards.place(row if self.rows is None else int(self.rows[row]))

    def where(self, row: int) -> str:
        """The shard and the offset of a sample, for errors."""
        shard, offset = self.place(row)
        return f"sample {offset} of {self.shards.names[shard]}"

    def error(self, row: int, error: Exception) -> ValueError:
        """The error for a sample that cannot be read, or whose values are not pixels."""
        if isinstance(error, ValueRangeError):
            return ValueRangeError(f"{error}; it is {self.where(row)}")
        return ValueError(
            f"cannot read {self.where(row)} ({type(error).__name__}: {error}); repair it, or set "
            'on_broken="skip" to skip and count such samples'
        )

    @contextmanager
    def _open(self, sample: Sample) -> Iterator[Image.Image | Raster]:
        image = sample.image
        if isinstance(image, bytes | bytearray | memoryview):
            with open_encoded(bytes(image), "the sample", self.decoding.channels) as opened:
                yield opened
        elif isinstance(image, Image.Image):
            yield image
        else:
            yield array_raster(np.asarray(image), self.decoding.channels)

    def captions(self, row: int) -> Any:
        """What `caption` makes of the captions of a sample, whose label is checked.

        Raises:
            ValueError: they or the label cannot be read.
        """
        try:
            return self._beside(self._read(row))[1]
        except BROKEN as error:
            raise self.error(row, error) from error

    def _beside(self, sample: Sample) -> tuple[Tensor | None, Any]:
        """The class number, and the captions."""
        caption = None if self.caption is None else self.caption(sample.caption)
        return self._class(sample.label), caption

    def _class(self, label: Any) -> Tensor | None:
        """The label as a number, or None without labels.

        Raises:
            ValueError: it is neither a class number nor one of `classes`.
        """
        if label is None:
            return None
        try:
            if isinstance(label, str):
                is_name = self.named or not label.lstrip("-").isdigit()
                number = (self.numbers or {})[label] if is_name else int(label)
            else:
                whole = isinstance(label, float) and label.is_integer()
                number = int(label) if whole else operator.index(label)
        except (KeyError, TypeError, ValueError):
            known = list(self.numbers or {})[:5] or "none; set classes to the list of names"
            raise ValueError(
                f"a label must be a whole number or one of classes ({known}), got {label!r:.60}"
            ) from None
        if self.num_classes is not None and not 0 <= number < self.num_classes:
            raise ValueError(
                f"a label must be in 0..{self.num_classes - 1}, got {number}; set num_classes, or "
                "label_key to null for no labels"
            )
        return torch.tensor(number)
