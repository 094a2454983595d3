"""ImageDataset and HFImages: data sets of torchvision, Hugging Face and your own, as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sslzoo.checks import check_at_least
from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import ImageSet
from sslzoo.data.streams.iterable import IterableShards, check_reproducible, is_sharded
from sslzoo.data.streams.order import ShardOrder
from sslzoo.data.streams.shard_images import ShardImages, Shuffle
from sslzoo.data.with_views import Rows, UserImages
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding
from sslzoo.transforms.image.views import Views
from sslzoo.value_range import ValueRange, check_value_range

_LARGE_SIDE = 128  # pixels; larger images are cropped in the workers


class Stream(Rows):
    """An iterable data set, read by position: forward, and from the start for an earlier one.

    Args:
        dataset: an iterable that gives the same items in the same order each time.
        num_samples: number of items that are used.
        value_range: see `Rows`.
        columns: see there.
        clip: see there.
    """

    def __init__(
        self,
        dataset: Any,
        num_samples: int,
        value_range: ValueRange | None,
        columns: tuple[str, str | None],
        clip: bool,
    ) -> None:
        self.num_samples = num_samples
        self._items: Iterator[Any] = iter(())
        self._last: tuple[int, Any] = (-1, None)
        super().__init__(dataset, value_range, None, None, columns, clip)

    def __len__(self) -> int:
        return self.num_samples

    def again(self) -> Stream:
        """The same data, read from a position of its own."""
        return Stream(self.dataset, self.num_samples, self.value_range, self.columns, self.clip)

    def item(self, row: int) -> Any:
        at, item = self._last
        if row == at:
            return item
        if row < at or at < 0:
            skips = hasattr(self.dataset, "skip")  # of Hugging Face, without decoding
            self._items = iter(self.dataset.skip(row) if skips and row else self.dataset)
            ahead = 0 if skips else row
        else:
            ahead = row - at - 1
        found = list(islice(self._items, ahead, ahead + 1))
        if not found:
            self._last = (-1, None)
            raise ValueError(
                f"num_samples must be at most the number of items of the stream, which ended "
                f"before item {row + 1} of {self.num_samples}"
            )
        self._last = (row, found[0])
        return found[0]


class ImageDataset(ImageDataModule):
    """Your data sets: torchvision's, Hugging Face's, or any with `__getitem__` and `__len__`.

    Items are (image, label), images alone, or dictionaries. Images are PIL images, arrays (H, W),
    (H, W, C) or (C, H, W), or tensors (C, H, W), of uint8, uint16, bool, or floats in [0, 1]; the
    data sets' own transforms should neither augment nor normalize. Channels and bits are kept.

    Hugging Face's iterable data sets are read by shard: one pass counts their samples, epochs mix
    shards as `ImageShards` does, and any number of ranks and workers reads them. Another iterable
    data set needs `num_samples`, as do the first samples of one of Hugging Face. It is read in its
    own order in every epoch, by one process per rank, and each rank reads all of it and keeps its
    part. So views, resumes and ranks are as exact as for other data, if the data set gives the same
    items in the same order each time; shuffle it before.

    For the other arguments see `ImageDataModule`.

    Args:
        train: the training set; in YAML, a class_path with its init_args.
        val: the set that evaluation scores; None: no validation.
        image_key: key of the image in items that are dictionaries.
        label_key: key of the label in them; None: no labels.
        num_classes: number of classes; None: that of the data set's `classes` or `features`.
        num_samples: samples per epoch of an iterable data set.
        crop_in_workers: whether workers crop, which allows images of several sizes; None: if the
            first image is larger than 128 pixels.
        value_range: the values of black and white; None: those of the type.
        clip: whether values outside `value_range` are clipped.
    """

    def __init__(
        self,
        train: Dataset,
        transform: Views,
        batch_size: int = 256,
        val: Dataset | None = None,
        image_key: str = "image",
        label_key: str | None = "label",
        num_classes: int | None = None,
        num_samples: int | None = None,
        crop_in_workers: bool | None = None,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        value_range: tuple[float, float] | None = None,
        clip: bool = False,
    ) -> None:
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        check_at_least("num_samples", 1 if num_samples is None else num_samples, 1)
        self.given: tuple[Any, Any] = train, val
        self.keys = image_key, label_key
        self.given_classes, self.given_samples = num_classes, num_samples
        self.crop_in_workers = crop_in_workers
        self.value_range, self.clip = check_value_range(value_range), clip

    def datasets(self) -> tuple[Any, Any]:
        """The training and the validation set (or None)."""
        return self.given

    def read(self) -> ImageSets:
        """Check a few samples, and that an iterable data set is used as one can be."""
        train, val = self.datasets()
        if self.given_samples is None and is_sharded(train) and not _is_map(train):
            return self._sharded(train, val)
        rows = self._rows(train)
        query = self._val_rows(val)
        image, label = rows.read([0])
        for each in (rows, query):
            if each is not None and not isinstance(each, Stream):
                each.check_sample()
        side = max(image[0].shape[1:])
        crop = side > _LARGE_SIDE if self.crop_in_workers is None else self.crop_in_workers
        classes = self.given_classes or _num_classes(train, self.keys[1])
        if isinstance(rows, Stream):
            return ImageSets(
                StreamImages(rows, crop),
                None if query is None else UserImages(query, crop),
                None if label is None else classes,
            )
        sets = [
            UserImages(each, crop, labels=_known_labels(each.dataset, self.keys[1]))
            for each in (rows, query)
            if each is not None
        ]
        return ImageSets(
            sets[0], sets[1] if len(sets) > 1 else None, None if label is None else classes
        )

    def _sharded(self, train: Any, val: Any) -> ImageSets:
        """The sets with an iterable training set of Hugging Face, read by shard."""
        decoding = Decoding(None, self.value_range, clip=self.clip)

        def opened(dataset: Any) -> ShardImages:
            shards = IterableShards(dataset, self.keys)
            images = ShardImages(
                *(shards, shards.classes, decoding, Shuffle()), num_classes=self.given_classes
            )
            return images.checked()

        images = opened(train)
        query: ImageSet | None = None
        if is_sharded(val) and not _is_map(val):
            query = opened(val)
        elif (rows := self._val_rows(val)) is not None:
            rows.check_sample()
            query = UserImages(rows, True, labels=_known_labels(val, self.keys[1]))
        return ImageSets(images, query, self.given_classes or _num_classes(train, self.keys[1]))

    def _val_rows(self, val: Any) -> Rows | None:
        if val is not None and not _is_map(val) and hasattr(val, "__iter__"):
            raise ValueError(
                "val must be a map-style data set, since evaluation needs its length, got an "
                f"iterable {type(val).__name__}"
            )
        return None if val is None else self._rows(val)

    def order(self) -> ShardOrder | None:
        train = self.sets.train
        return train.order() if isinstance(train, ShardImages) else None

    def _rows(self, dataset: Any) -> Rows:
        given = self.value_range, self.keys, self.clip
        if _is_map(dataset):
            if not len(dataset):
                raise ValueError(f"a data set must have samples, got none in {dataset!r:.100}")
            return Rows(dataset, given[0], columns=given[1], clip=given[2])
        if not hasattr(dataset, "__iter__"):
            raise ValueError(
                "a data set must have __getitem__ and __len__, or be iterable, got "
                f"{type(dataset).__name__}"
            )
        if self.given_samples is None:
            raise ValueError(
                "num_samples must be the number of samples per epoch for an iterable data set, got "
                "None"
            )
        if self.train_fraction < 1:
            raise ValueError(
                f"train_fraction must be 1 for an iterable data set, got {self.train_fraction}; "
                "set num_samples to use its first samples"
            )
        if self.num_workers:
            raise ValueError(
                f"num_workers must be 0 for an iterable data set, got {self.num_workers}, since "
                "such data sets give every process other items"
            )
        check_reproducible(dataset)
        return Stream(dataset, self.given_samples, *given)

    def shuffles(self) -> bool:
        return not isinstance(self.sets.train, StreamImages)

    def workers(self, samples: Any) -> int:
        return 0 if isinstance(samples, StreamImages) else super().workers(samples)


class StreamImages(UserImages):
    """The images of an iterable data set; every loader reads it from a position of its own."""

    def subset(self, rows: Tensor) -> UserImages:
        raise ValueError("an iterable data set has no subsets; set num_samples")

    def cropped(self, crops: Any, keep_size: bool) -> StreamImages:
        assert isinstance(self.samples, Stream)
        wanted = crops if self.needs_crops else None
        return StreamImages(self.samples.again(), self.needs_crops, wanted)


class HFImages(ImageDataset):
    """The images of a Hugging Face data set by name, or of a folder that holds one.

    For the other arguments see `ImageDataset`.

    Args:
        name: a name such as "cifar10", a folder that `save_to_disk` wrote, or a folder of files
            that `datasets.load_dataset` reads.
        subset: configuration of the data set.
        train_split: split for training, such as "train" or "train[:90%]".
        val_split: split that evaluation scores; None: no validation.
        streaming: whether to read the training split without downloading all of it, as an iterable
            data set, by shard (or in order, with `num_samples`).
        local_files_only: refuse a name that would be downloaded. It is set when the config of a run
            directory is read without `trust`.
    """

    def __init__(
        self,
        name: str,
        transform: Views,
        batch_size: int = 256,
        subset: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        streaming: bool = False,
        image_key: str = "image",
        label_key: str | None = "label",
        num_classes: int | None = None,
        num_samples: int | None = None,
        crop_in_workers: bool | None = None,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        value_range: tuple[float, float] | None = None,
        clip: bool = False,
        local_files_only: bool = False,
    ) -> None:
        super().__init__(
            *(None, transform, batch_size, None, image_key, label_key),  # type: ignore[arg-type]
            *(num_classes, num_samples, crop_in_workers, eval_view, eval_batch_size),
            *(num_workers, seed, train_fraction, predict_on, drop_last),
            value_range=value_range,
            clip=clip,
        )
        self.source, self.subset = name, subset
        self.train_split, self.val_split = train_split, val_split
        self.streaming = streaming
        self.local_files_only = local_files_only

    def prepare_data(self) -> None:
        """Download the data set, unless it is streamed."""
        if not self.streaming:
            self.datasets()

    def datasets(self) -> tuple[Any, Any]:
        val = None if self.val_split is None else self._load(self.val_split, False)
        return self._load(self.train_split, self.streaming), val

    def _load(self, split: str, streaming: bool) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                "HFImages needs the package datasets, which is not installed; run pip install "
                "'sslzoo[hf]'"
            ) from error
        folder = Path(self.source).expanduser()
        if self.local_files_only and not folder.is_dir():
            raise ValueError(
                f"the data set {self.source!r} of a run's config must be a folder, since nothing "
                "is downloaded for a file; if you trust the run, say so: --trust"
            )
        if (folder / "dataset_dict.json").is_file():
            saved: Any = datasets.load_from_disk(str(folder))
            if split not in saved:
                raise ValueError(
                    f"a split must be one of {sorted(saved)} of {self.source}, got {split!r}"
                )
            saved = saved[split]
        elif (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
            saved = datasets.load_from_disk(str(folder))
        else:
            return datasets.load_dataset(self.source, self.subset, split=split, streaming=streaming)
        return saved.to_iterable_dataset() if streaming else saved


def _is_map(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and isinstance(dataset, Sized)


def _num_classes(dataset: Any, label_key: str | None) -> int | None:
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, Sized):
        return len(classes)
    features: Any = getattr(dataset, "features", None) or {}
    found = features.get(label_key) if hasattr(features, "get") else None
    return getattr(found, "num_classes", None)


def _known_labels(dataset: Any, label_key: str | None) -> Tensor | None:
    """Labels that are known without loading an image: `targets`, or a column."""
    given: Any = getattr(dataset, "targets", None)
    if given is None and label_key in (getattr(dataset, "column_names", None) or ()):
        given = dataset[label_key]
    if given is None:
        return None
    try:
        labels = torch.as_tensor(given if isinstance(given, Sequence | Tensor) else list(given))
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = labels.ndim == 1 and len(labels) == len(dataset) and not labels.is_floating_point()
    return labels.to(torch.int64) if whole else None
