"""ImageShards: images in tar shards, Parquet or LitData, local or by address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.checks import check_at_least, check_choice
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import FileImages, ImageSet
from sslzoo.data.image.load import ANY_EXTENSIONS
from sslzoo.data.listing import list_classes
from sslzoo.data.streams.from_shards import FromShards, checked_shuffle
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.shard_images import ShardImages
from sslzoo.data.streams.sources import is_folder_of_images
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding
from sslzoo.transforms.image.views import Views
from sslzoo.value_range import check_value_range


class ImageShards(FromShards, ImageDataModule):
    """Images in shards: tar files of WebDataset, Parquet, or LitData.

    A sample is read by (shard, offset), so batches and views are the same for any number of ranks
    and workers, each sample comes once per epoch, and a run resumes within a shard without reading
    what came before. Tar files are read by their index, which `sslzoo data shard` or `sslzoo data
    index` writes; without one, their headers are scanned when training starts. Shards of an address
    are downloaded, whole, into `cache_dir`. Parquet needs pyarrow and LitData litdata (extra
    `streams`).

    For the other arguments see `ImageFolder`.

    Args:
        train: the training shards: a .json list, a pattern such as `x-{000..127}.tar`, `x-*.tar`
            or `hf://datasets/<name>/data/train-*.parquet`, a folder of shards or of LitData, or a
            list of these.
        val: the shards that evaluation scores, or a folder with one sub-folder per class; None: no
            validation.
        image_key: extension of the image in a tar sample (several, with commas), column of
            Parquet, or key of LitData; None: any image, or "image".
        label_key: that of the label; "auto": "cls", or "label", if it is there; null: no labels.
            `json.label` is a field of a JSON member.
        classes: names of the classes, for labels that are names, also where these are digits;
            None: those of the shards.
        num_classes: number of classes, below which labels must be; None: that of `classes` or of
            the shards.
        shuffle_shards: number of shards that an epoch mixes at a time; 0: the order of the shards.
        shuffle_samples: number of samples that are permuted together.
        on_broken: raise an "error" for a broken shard or sample, or "skip" and count it.
        cache_dir: folder for shards of an address; None: `~/.cache/sslzoo/streams`.
        cache_gb: bound of that folder in GiB, at least `shuffle_shards` shards.
        local_files_only: refuse addresses. It is set when the config of a run directory is read
            without `trust`.
    """

    def __init__(
        self,
        train: str | list[str],
        transform: Views,
        batch_size: int = 256,
        val: str | list[str] | None = None,
        image_key: str | None = None,
        label_key: str | None = "auto",
        classes: list[str] | None = None,
        num_classes: int | None = None,
        shuffle_shards: int = 8,
        shuffle_samples: int = 4096,
        on_broken: OnBroken = "error",
        cache_dir: str | None = None,
        cache_gb: float = 100.0,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        channels: int | None = 3,
        value_range: tuple[float, float] | None = None,
        clip: bool = False,
        local_files_only: bool = False,
    ) -> None:
        check_choice("on_broken", on_broken, get_args(OnBroken))
        check_at_least("channels", 1 if channels is None else channels, 1)
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.given = train, val
        self.keys = image_key, label_key, None
        self.classes = None if classes is None else list(classes)
        self.given_classes = num_classes
        self.named = classes is not None
        self.shuffle = checked_shuffle(shuffle_shards, shuffle_samples)
        self.on_broken: OnBroken = on_broken
        self.cache = ShardCache(cache_dir, cache_gb, local_files_only)
        self.value_range, self.clip = check_value_range(value_range), clip
        self.decoding = Decoding(channels, self.value_range, clip=clip)

    def read(self) -> ImageSets:
        """Open the shards, and read a few samples."""
        source, val = self.given
        train = self._open(source, None)
        self.classes = list(train.numbers) if train.numbers else None
        labeled = train.has_labels()
        self.check_labels(labeled)
        query: ImageSet | None = None
        if val is not None and is_folder_of_images(val):
            query = self._folder(str(val), train.channels)
        elif val is not None:
            query = self._open(val, train.channels)
        count = self.given_classes or (len(self.classes) if self.classes else None)
        if labeled and count is None:
            rank_zero_warn(
                "the number of classes is unknown, so only label-free metrics will be computed; "
                "set num_classes"
            )
        return ImageSets(train, query, count if labeled else None)

    def _open(self, source: str | Sequence[str], channels: int | None) -> ShardImages:
        found = self.find_shards(source)
        decoding = self.decoding._replace(channels=channels or self.decoding.channels)
        images = ShardImages(
            found.shards,
            decoding=decoding,
            shuffle=self.shuffle,
            on_broken=self.on_broken,
            left_out=found.lost,
            **self.numbering(found.shards, source),
        )
        return images.checked()

    def _folder(self, folder: str, channels: int | None) -> FileImages:
        files = list_classes(folder, "val", ANY_EXTENSIONS, self.classes)
        self.classes = list(files.classes)
        decoding = self.decoding._replace(channels=channels, may_be_dark=True)
        return FileImages(files.paths, files.labels, None, self.on_broken, decoding)
