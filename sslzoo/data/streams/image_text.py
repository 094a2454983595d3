"""ImageTextShards: pairs of images and captions in tar shards, Parquet or LitData."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.image.datamodule import ImageSets
from sslzoo.data.image.image_text import (
    ImageTextDataModule,
    PairSet,
    Unpaired,
    caption_lines,
    given_texts,
    say_alone,
)
from sslzoo.data.listing import spread
from sslzoo.data.streams.from_shards import FromShards, checked_shuffle
from sslzoo.data.streams.order import ShardOrder
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.shard_images import ShardImages
from sslzoo.data.streams.tar import TarShards
from sslzoo.data.text.tokenizer import TextTokenizer
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding
from sslzoo.transforms.image.views import Views

_REMOTE = 64  # captions of an address that are read before training


class EmptyTextError(ValueError):
    """A sample has no caption, or one without words."""


def captions_of(told: Any) -> list[str]:
    """The captions beside an image: a text's lines, or the texts of a list.

    Raises:
        ValueError: there is none, or it is no text.
    """
    where = f"{told!r:.60}"
    found = caption_lines(told, where) if isinstance(told, str) else given_texts(told, where)
    if not found:
        raise EmptyTextError(f"an image must have a caption, got {told!r}")
    return found


class ShardPairs(PairSet):
    """Images and captions that are read together, by (shard, offset); see `PairSet`.

    The images' `caption` is `captions_of`.
    """

    images: ShardImages

    def order(self) -> ShardOrder:
        return self.images.order()

    def fingerprint(self) -> str | None:
        return self.images.fingerprint()  # the captions are in the shards

    def walk(self) -> Iterator[str]:
        if self.images.shards.is_remote:
            raise ValueError(
                "the tokenizer must not be trained on shards of an address, which would download "
                "them all; give WordPiece(path=...) of a file that was saved, or HFTokenizer"
            )
        for row in range(len(self)):
            yield from self._captions(row)

    def some(self, number: int) -> list[str]:
        if self.images.shards.is_remote:  # of the first shard alone
            rows = list(range(min(_REMOTE, int(self.images.order().counts[0]) or 1)))
        else:
            rows = spread(len(self), number)
        return [text for row in rows for text in self._captions(row)]

    def _captions(self, row: int) -> list[str]:
        """The captions of a sample; none if it is broken and skipped."""
        try:
            return self.images.captions(row)
        except ValueError as error:
            if not isinstance(error.__cause__, self.images.skipped):
                raise
            return []

    def __getitems__(self, index: list[int]) -> Batch:
        batch, texts = self.images.read_rows(index)
        return self.with_texts(batch, texts)


class ImageTextShards(FromShards, ImageTextDataModule):
    """Pairs of images and captions in shards: WebDataset's tar files, Parquet, or LitData.

    A sample of a tar file is an image and a text of one key, such as `0001.jpg` and `0001.txt` (as
    img2dataset writes them), or a field of `0001.json`. Samples are read by (shard, offset), so
    batches, views and captions are the same for any number of ranks and workers, and a run resumes
    within a shard; see `ImageShards`. Each line of a text, and each text of a list, is a caption;
    of several, one is drawn per epoch.

    For the other arguments see `ImageShards` and `ImageTextFolder`.

    Args:
        train: the training shards, see `ImageShards`.
        val: the shards of the pairs that retrieval scores; None: no validation.
        image_key: extension of the image in a tar sample, column of Parquet, or key of LitData;
            None: any image, or "image".
        text_key: that of the caption; `json.caption` is a field of a JSON member.
        label_key: that of the label, such as `cls` or `json.label`, for kNN, probes and zero-shot
            classification; "auto": see `ImageShards`; None: no classes.
        classes: see `ImageShards`.
        num_classes: see `ImageShards`.
        unpaired: "error" for an image without a text, a text without an image or an empty text in
            tar files on a disk; "skip" leaves them out and says how many. Those in other shards are
            broken samples, as are texts of spaces alone and nulls of JSON, which "skip" skips too.
        on_broken: raise an "error" for a broken shard or sample, or "skip" and count it.
    """

    def __init__(
        self,
        train: str | list[str],
        transform: Views,
        tokenizer: TextTokenizer,
        batch_size: int = 256,
        max_length: int = 77,
        val: str | list[str] | None = None,
        image_key: str | None = None,
        text_key: str = "txt",
        label_key: str | None = None,
        classes: list[str] | None = None,
        num_classes: int | None = None,
        shuffle_shards: int = 8,
        shuffle_samples: int = 4096,
        unpaired: Unpaired = "error",
        on_broken: OnBroken = "error",
        cache_dir: str | None = None,
        cache_gb: float = 100.0,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        local_files_only: bool = False,
    ) -> None:
        super().__init__(
            *(transform, tokenizer, batch_size, max_length, unpaired, "workers", on_broken),
            *(eval_view, eval_batch_size, num_workers, seed, predict_on, drop_last),
        )
        self.given = train, val
        self.keys = image_key, label_key, text_key
        self.classes = list(classes or [])
        self.named, self.given_classes = bool(classes), num_classes
        self.shuffle = checked_shuffle(shuffle_shards, shuffle_samples)
        self.cache = ShardCache(cache_dir, cache_gb, local_files_only)

    def read(self) -> ImageSets:
        """Open the shards and read a few pairs."""
        source, val = self.given
        train = self._open(source)
        labeled = train.images.has_labels()
        self.check_labels(labeled)
        self.classes = list(train.images.numbers or []) if labeled else []
        count = self.given_classes or len(self.classes) or None
        if labeled and count is None:
            raise ValueError(
                "classes must be the list of the classes' names, or num_classes their number, for "
                f"the labels {self.keys[1]!r} of {source}, which does not tell them; got None"
            )
        query = None if val is None else self._open(val)
        return ImageSets(train, query, count if labeled else None)

    def _open(self, source: str | Sequence[str]) -> ShardPairs:
        found = self.find_shards(source, lone=True)
        images = ShardImages(
            found.shards,
            decoding=Decoding(3),
            shuffle=self.shuffle,
            on_broken=self.on_broken,
            left_out=found.lost,
            caption=captions_of,
            skipped=(EmptyTextError,) if self.unpaired == "skip" else (),
            **self.numbering(found.shards, source),
        )
        rows = self._paired(images)
        paired = images if rows is None else images.subset(rows)
        return ShardPairs(paired.checked(), self.encode)

    def _paired(self, images: ShardImages) -> Tensor | None:
        """Rows that have an image and a text; None: all, or it is not known before reading."""
        shards = images.shards
        sizes = shards.sizes() if isinstance(shards, TarShards) else None
        if sizes is None:
            return None
        image, label, text = sizes.T
        self._check_labels(images, label)
        if (text < 0).all() or (image < 0).all():
            which, key = ("text_key", self.keys[2]) if (text < 0).all() else ("image_key", None)
            raise ValueError(
                f"{which} must be a member of the samples, such as txt or json.caption, got "
                f"{key or self.keys[0]!r}, which none of the {len(sizes)} samples of "
                f"{shards.names[0]} has"
            )
        alone = {
            "images without a text": (image >= 0) & (text < 0),
            "texts without an image": (image < 0) & (text >= 0),
            "empty texts": (image >= 0) & (text == 0),
        }
        where = {
            k: [images.where(row) for row in np.flatnonzero(v).tolist()] for k, v in alone.items()
        }
        say_alone(where, self.unpaired)
        kept = (image >= 0) & (text > 0)
        return None if kept.all() else torch.from_numpy(np.flatnonzero(kept))

    def _check_labels(self, images: ShardImages, size: np.ndarray) -> None:
        """Refuse samples without a label, of `size` -1, unless broken ones are skipped."""
        shards = images.shards
        assert isinstance(shards, TarShards)
        lacking = np.flatnonzero(size < 0)
        if shards.keys.label is None or not len(lacking) or self.on_broken == "skip":
            return
        raise ValueError(
            f"every sample must have the label {shards.keys.label!r} (label_key), but "
            f"{len(lacking)} of {len(size)} lack it, the first is {images.where(int(lacking[0]))}; "
            'repair it, or set on_broken="skip" to skip and count such samples'
        )
