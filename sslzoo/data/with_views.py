"""with_views: train on any LightningDataModule that yields (image, label)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
    default_convert,
)

from sslzoo import distributed
from sslzoo.batch import Batch
from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import Crops, ImageSet, stack_boxes
from sslzoo.data.listing import select_rows, spread
from sslzoo.random import Keys
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding, pixels_of, stack_pixels
from sslzoo.transforms.image.views import Views
from sslzoo.value_range import TooDarkError, ValueRange, check_value_range

_LARGE_SIDE = 128  # pixels; larger images are cropped in the workers
_SAMPLE = 4  # samples of each loader that are read before training
_ORDERS = (RandomSampler, SequentialSampler, DistributedSampler, SubsetRandomSampler)


def with_views(
    datamodule: LightningDataModule,
    transform: Views,
    eval_view: EvalView | None = None,
    batch_size: int | None = None,
    num_classes: int | None = None,
    crop_in_workers: bool | None = None,
    seed: int | None = None,
    predict_on: PredictOn = "query",
    value_range: tuple[float, float] | None = None,
) -> ImageDataModule:
    """Train on a data module that yields (image, label), without changing it.

    Its datasets are read by index, with their own transforms (which should neither augment nor
    normalize) and its loaders' collate functions. Its loaders give the batch size, the number of
    workers and the subset of a `SubsetRandomSampler`. Our sampler and views replace its shuffling
    and augmentation. Channels and bit depth are kept.

    Args:
        datamodule: a data module with `train_dataloader`, and with `val_dataloader` or
            `test_dataloader` for evaluation (the first of several is used). Images are PIL images,
            arrays (H, W) or (H, W, C), or tensors (C, H, W), of uint8, uint16, bool, or floats in
            [0, 1]. Labels are optional.
        transform: makes the training views.
        eval_view: the evaluation view; None: derived from `transform`, see `ImageDataModule`.
        batch_size: size of the global batch, over all ranks; None: that of its loader times the
            number of ranks, as in Lightning.
        num_classes: number of classes; None: the data module's `num_classes`, or the length of the
            dataset's `classes`. Without either, only label-free metrics are computed.
        crop_in_workers: whether workers crop, which allows images of several sizes; None: if the
            first image is larger than 128 pixels.
        seed: seed of batches and views; None: the run's seed.
        predict_on: the set that `predict` runs on.
        value_range: the values of black and white, such as (0, 255) of floats or (-1, 1); None:
            those of the type.

    Raises:
        ValueError: on use, for an image, a sampler or a loader of another kind.
    """
    return _WithViews(
        *(datamodule, transform, eval_view, batch_size, num_classes, crop_in_workers),
        *(seed, predict_on, check_value_range(value_range)),
    )


class _WithViews(ImageDataModule):
    def __init__(
        self,
        datamodule: LightningDataModule,
        transform: Views,
        eval_view: EvalView | None,
        batch_size: int | None,
        num_classes: int | None,
        crop_in_workers: bool | None,
        seed: int | None,
        predict_on: PredictOn,
        value_range: ValueRange | None,
    ) -> None:
        batch = 1 if batch_size is None else batch_size
        super().__init__(transform, batch, eval_view, 256, None, seed, 1.0, predict_on)
        self.inner = datamodule
        self._own_batch = batch_size is not None
        self._classes = num_classes
        self._crop = crop_in_workers
        self.value_range = value_range

    def prepare_data(self) -> None:
        self.inner.prepare_data()

    def read(self) -> ImageSets:
        self.inner.trainer = self.trainer
        self.inner.setup("fit")
        loaders = self.inner.train_dataloader()
        several = isinstance(loaders, list | tuple | dict) and len(loaders) > 1
        loader = _checked(loaders if several else _first(loaders), "train_dataloader")
        if loader is None:
            raise ValueError("the data module of with_views must have a train_dataloader, got None")
        self.num_workers = loader.num_workers
        if not self._own_batch:
            if loader.batch_size is None:
                raise ValueError(
                    "the train_dataloader must have a batch_size, got None; pass batch_size to "
                    "with_views"
                )
            self.batch_size = loader.batch_size * distributed.world_size()
        self.eval_batch_size = min(256, max(1, loader.batch_size or 256))
        train = _rows(loader, self.value_range)
        image, label = train.read([0])
        query = self._query_dataset()
        rest = [] if query is None or query.dataset is train.dataset else [query]
        for rows in (train, *rest):
            rows.check_sample()
        train.warn_if_augmented()
        side = max(image[0].shape[1:])
        crop = side > _LARGE_SIDE if self._crop is None else self._crop
        return ImageSets(
            UserImages(train, crop),
            None if query is None else UserImages(query, crop),
            None if label is None else self._count_classes(loader.dataset),
        )

    def _query_dataset(self) -> Rows | None:
        for stage, name in (("validate", "val_dataloader"), ("test", "test_dataloader")):
            if getattr(type(self.inner), name) is getattr(LightningDataModule, name):
                continue  # it is not implemented
            self.inner.setup(stage)
            loader = _checked(_first(getattr(self.inner, name)()), name)
            if loader is not None:
                return _rows(loader, self.value_range)
        return None

    def _count_classes(self, dataset: Any) -> int | None:
        classes = getattr(dataset, "classes", None)
        found = self._classes or getattr(self.inner, "num_classes", None)
        if found is None and isinstance(classes, Sized):
            found = len(classes)
        if found is None:
            rank_zero_warn(
                "the number of classes is unknown, so only label-free metrics will be computed; "
                "pass num_classes to with_views"
            )
        return found


class Rows:
    """The (image, label) samples of a user's data set.

    Args:
        dataset: a map-style data set, whose items are (image, label), images, or dictionaries.
        value_range: the values of black and white; None: those of the type.
        rows: the items that are used; None: all.
        collate: makes (images, labels) of a list of items; None: ours.
        columns: keys of the image and the label in dictionaries; None: no labels.
        clip: whether values outside `value_range` are clipped.
    """

    def __init__(
        self,
        dataset: Any,
        value_range: ValueRange | None,
        rows: Sequence[int] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        columns: tuple[str, str | None] = ("image", "label"),
        clip: bool = False,
    ) -> None:
        self.dataset = dataset
        self.value_range, self.clip = value_range, clip
        self.rows, self.collate, self.columns = rows, collate, columns
        self.may_be_dark = True
        self.channels: int | None = None
        self.channels = len(self.read([0])[0][0])

    def __len__(self) -> int:
        return len(self.dataset) if self.rows is None else len(self.rows)

    def read(self, index: Sequence[int]) -> tuple[list[Tensor], Tensor | None]:
        """Images (C, H, W), uint8 or float in [0, 1], and labels (B,), or None without labels.

        Raises:
            ValueError: a sample is not (image, label), or its values are not pixels.
        """
        items = [self.item(row if self.rows is None else int(self.rows[row])) for row in index]
        if self.collate is None:
            pairs = [_pair(item, self.columns) for item in items]
            images = [image for image, _ in pairs]
            given = [label for _, label in pairs if label is not None]
            labels = _labels(given) if given else None
        else:
            images, labels = _pair(self.collate(items), self.columns)
            labels = None if labels is None else _labels(labels)
            counts = [len(x) if isinstance(x, Sized) else None for x in (images, labels)]
            if counts[0] != len(items) or counts[1] not in (None, len(items)):
                raise ValueError(
                    "the collate_fn of a loader of with_views must give (images, labels) of the "
                    f"{len(items)} samples, got {counts[0]} images and {counts[1]} labels"
                )
        return [self._pixels(image) for image in images], labels

    def item(self, row: int) -> Any:
        """One item of the data set."""
        return self.dataset[row]

    def check_sample(self) -> None:
        """Read a few evenly spaced samples.

        Raises:
            ValueError: see `read`; or none of 16 bits has more than 12.
        """
        dark, bright = None, False
        self.may_be_dark = False
        for row in spread(len(self), _SAMPLE):
            try:
                bright |= self.read([row])[0][0].is_floating_point()
            except TooDarkError as error:
                dark = dark or error
        if dark is not None and not bright:
            raise dark
        self.may_be_dark = True

    def warn_if_augmented(self) -> None:
        """Warn if a few samples have other pixels when they are read again."""
        rows = spread(len(self), _SAMPLE)
        first, again = ([self.read([row])[0][0] for row in rows] for _ in range(2))
        if not all(map(torch.equal, first, again)):
            rank_zero_warn(
                "the dataset of with_views gives other pixels each time it is read; its transform "
                "should not augment, since the views do, and since kNN would read augmented images"
            )

    def _pixels(self, image: Any) -> Tensor:
        gray = isinstance(image, Image.Image) and self.channels == 3
        channels = 3 if gray else None
        return pixels_of(
            image, channels, self.value_range, may_be_dark=self.may_be_dark, clip=self.clip
        )


class UserImages(ImageSet):
    """A user's samples, read by index. `crops` is None if whole images are read."""

    def __init__(
        self,
        samples: Rows,
        needs_crops: bool,
        crops: Crops | None = None,
        rows: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.samples = samples
        self.labels = labels  # if known without loading every image
        self.needs_crops = needs_crops
        self.crops = crops
        self.rows = rows
        self.channels = samples.channels

    def side(self, wanted: int | None) -> int | None:
        """The shorter side of the first image, if all have one size."""
        return None if self.needs_crops else min(self.samples.read([0])[0][0].shape[1:])

    def __len__(self) -> int:
        return len(self.samples) if self.rows is None else len(self.rows)

    def subset(self, rows: Tensor) -> UserImages:
        labels = select_rows(self.labels, rows)
        rows = rows if self.rows is None else self.rows[rows]
        return UserImages(self.samples, self.needs_crops, self.crops, rows, labels)

    def cropped(self, crops: Crops, keep_size: bool) -> UserImages:
        wanted = crops if self.needs_crops else None
        return UserImages(self.samples, self.needs_crops, wanted, self.rows, self.labels)

    def __getitems__(self, index: list[int]) -> Batch:
        kept = torch.tensor(index)
        images, label = self.samples.read(index if self.rows is None else self.rows[kept].tolist())
        if self.crops is None:
            return Batch([_stack(images)], kept, label)
        key = self.crops.keys(kept).key
        cut = [
            self.crops.cut(image, Keys(key[i : i + 1]), Decoding())
            for i, image in enumerate(images)
        ]
        views = [_stack(list(view)) for view in zip(*(one.views for one in cut), strict=True)]
        return Batch(views, kept, label, stack_boxes(cut))


def _first(loaders: Any) -> Any:
    """The first loader of a list or dict, or the loader itself."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        loaders = loaders[0] if loaders else None
    return loaders


def _checked(loader: Any, name: str) -> DataLoader[Any] | None:
    """A loader whose samples can be read by index, in any order.

    Raises:
        ValueError: it is no such loader, or its sampler cannot be kept.
    """
    if loader is None:
        return None
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        got = type(getattr(loader, "dataset", loader)).__name__
        raise ValueError(
            f"the {name} of with_views must be one DataLoader of a map-style dataset, got {got}"
        )
    if not isinstance(loader.dataset, Sized) or not len(loader.dataset):
        raise ValueError(f"the dataset of the {name} must have samples, got none")
    _check_order(loader, name)
    return loader


def _check_order(loader: DataLoader[Any], name: str) -> None:
    """Refuse a sampler that the keyed sampler would silently replace."""
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        got = type(loader.batch_sampler).__name__
    elif type(sampler) not in _ORDERS:
        got = type(sampler).__name__
    elif isinstance(sampler, RandomSampler) and (
        sampler.replacement or sampler.num_samples != len(sampler.data_source)
    ):
        got = f"RandomSampler(replacement={sampler.replacement}, num_samples={sampler.num_samples})"
    else:
        return
    raise ValueError(
        f"the sampler of the {name} must be a RandomSampler or SequentialSampler of all samples, a "
        f"DistributedSampler or a SubsetRandomSampler, got {got}, which the keyed sampler of "
        "with_views would replace; choose the samples by torch.utils.data.Subset"
    )


def _rows(loader: DataLoader[Any], value_range: ValueRange | None) -> Rows:
    """The samples of a loader: its dataset, sampler and collate function."""
    collate: Any = loader.collate_fn
    sampler = loader.sampler
    return Rows(
        loader.dataset,
        value_range,
        list(sampler.indices) if isinstance(sampler, SubsetRandomSampler) else None,
        None if collate in (default_collate, default_convert) else collate,
    )


def _pair(item: Any, columns: tuple[str, str | None]) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        image, label = columns
        if image not in item or (label is not None and label not in item):
            raise ValueError(
                f"a dataset's item must be (image, label), got {type(item).__name__} with the keys "
                f"{sorted(map(str, item))} instead of {[c for c in columns if c]}"
            )
        return item[image], None if label is None else item[label]
    if isinstance(item, (tuple, list)) and item:
        return item[0], item[1] if len(item) > 1 else None
    if isinstance(item, (Tensor, np.ndarray, Image.Image)):
        return item, None
    raise ValueError(f"a dataset's item must be (image, label), got {type(item).__name__}")


def _labels(labels: Any) -> Tensor:
    try:
        if isinstance(labels, Tensor):
            return labels
        return torch.stack([torch.as_tensor(label) for label in labels])
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"labels must be numbers or arrays of one shape, got {labels!r:.100}"
        ) from None


def _stack(images: list[Tensor]) -> Tensor:
    if len({image.shape for image in images}) > 1:
        sizes = sorted({tuple(image.shape) for image in images})[:2]
        channels = len({size[0] for size in sizes}) > 1
        more = (
            "convert them in the dataset" if channels else "pass crop_in_workers=True to with_views"
        )
        raise ValueError(f"images of a batch must have one shape, got {sizes}; {more}")
    return stack_pixels(images)
