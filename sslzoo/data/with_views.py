"""with_views: train on any LightningDataModule that yields (image, label)."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from sslzoo import distributed
from sslzoo.batch import Batch
from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.decode import to_rgb, to_tensor
from sslzoo.data.image.image_set import Crops, ImageSet
from sslzoo.random import Keys
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views

_LARGE_SIDE = 128  # pixels; larger images are cropped in the workers


def with_views(
    datamodule: LightningDataModule,
    transform: Views,
    eval_view: EvalView | None = None,
    batch_size: int | None = None,
    num_classes: int | None = None,
    crop_in_workers: bool | None = None,
    seed: int | None = None,
    predict_on: PredictOn = "query",
) -> ImageDataModule:
    """Train on a data module that yields (image, label), without changing it.

    Its datasets are read by index, with their own transforms (which should neither augment nor
    normalize). Its loaders give the batch size and the number of workers. Our sampler and views
    replace its shuffling and augmentation.

    Args:
        datamodule: a data module with `train_dataloader`, and with `val_dataloader` or
            `test_dataloader` for evaluation (the first of several is used). Images are PIL images,
            uint8 arrays (H, W) or (H, W, C), or uint8 or float tensors (C, H, W), floats in
            [0, 1]. Labels are optional.
        transform: makes the training views.
        eval_view: the evaluation view; None: derived from `transform`, see `ImageDataModule`.
        batch_size: size of the global batch, over all ranks; None: that of its loader times the
            number of ranks, as in Lightning.
        num_classes: number of classes; None: the data module's `num_classes`, or the length of the
            dataset's `classes`. Without either, only label-free metrics are computed.
        crop_in_workers: whether workers crop to uint8, which allows images of several sizes; None:
            if the first image is larger than 128 pixels.
        seed: seed of batches and views; None: the run's seed.
        predict_on: the set that `predict` runs on.

    Raises:
        ValueError: on use, for an image or a loader of another kind.
    """
    return _WithViews(
        *(datamodule, transform, eval_view, batch_size, num_classes, crop_in_workers),
        *(seed, predict_on),
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
    ) -> None:
        batch = 1 if batch_size is None else batch_size
        super().__init__(transform, batch, eval_view, 256, None, seed, 1.0, predict_on)
        self.inner = datamodule
        self._own_batch = batch_size is not None
        self._classes = num_classes
        self._crop = crop_in_workers

    def prepare_data(self) -> None:
        self.inner.prepare_data()

    def read(self) -> ImageSets:
        self.inner.trainer = self.trainer
        self.inner.setup("fit")
        loader = _first(self.inner.train_dataloader())
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
        image, label = _pair(loader.dataset[0])
        side = max(_size(image))
        crop = side > _LARGE_SIDE if self._crop is None else self._crop
        query = self._query_dataset()
        return ImageSets(
            _UserImages(loader.dataset, crop),
            None if query is None else _UserImages(query, crop),
            None if label is None else self._count_classes(loader.dataset),
        )

    def _query_dataset(self) -> Any | None:
        for stage, name in (("validate", "val_dataloader"), ("test", "test_dataloader")):
            if getattr(type(self.inner), name) is getattr(LightningDataModule, name):
                continue  # it is not implemented
            self.inner.setup(stage)
            loader = _first(getattr(self.inner, name)())
            if loader is not None:
                return loader.dataset
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


class _UserImages(ImageSet):
    """A user's dataset, read by index. `crops` is None if whole images are read."""

    def __init__(
        self,
        dataset: Any,
        needs_crops: bool,
        crops: Crops | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self.dataset = dataset
        self.labels = None  # reading all of them would load every image
        self.needs_crops = needs_crops
        self.crops = crops
        self.rows = rows
        self.channels = 3 if needs_crops else len(self._first())

    def side(self, wanted: int | None) -> int | None:
        """The shorter side of the first image, if all have one size."""
        return None if self.needs_crops else min(self._first().shape[1:])

    def _first(self) -> Tensor:
        return _tensor(_pair(self.dataset[0])[0])

    def __len__(self) -> int:
        return len(self.dataset) if self.rows is None else len(self.rows)

    def subset(self, rows: Tensor) -> _UserImages:
        rows = rows if self.rows is None else self.rows[rows]
        return _UserImages(self.dataset, self.needs_crops, self.crops, rows)

    def cropped(self, crops: Crops, keep_size: bool) -> _UserImages:
        wanted = crops if self.needs_crops else None
        return _UserImages(self.dataset, self.needs_crops, wanted, self.rows)

    def __getitems__(self, index: list[int]) -> Batch:
        kept = torch.tensor(index)
        rows = index if self.rows is None else self.rows[kept].tolist()
        pairs = [_pair(self.dataset[row]) for row in rows]
        labels = [label for _, label in pairs if label is not None]
        label = torch.stack([torch.as_tensor(x) for x in labels]) if labels else None
        if self.crops is None:
            return Batch([_stack([_tensor(image) for image, _ in pairs])], kept, label)
        key = self.crops.keys(kept).key
        cut = [
            self.crops.cut(_pil_image(image), Keys(key[i : i + 1]), upright=False)
            for i, (image, _) in enumerate(pairs)
        ]
        return Batch([torch.stack(view) for view in zip(*cut, strict=True)], kept, label)


def _first(loaders: Any) -> Any:
    """The first loader of a list or dict, or the loader itself."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        loaders = loaders[0] if loaders else None
    return loaders


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, (tuple, list)):
        return item[0], item[1] if len(item) > 1 else None
    if isinstance(item, (Tensor, np.ndarray, Image.Image)):
        return item, None
    raise ValueError(f"a dataset's item must be (image, label), got {type(item).__name__}")


def _size(image: Any) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.size
    height, width = _tensor(image).shape[1:]
    return int(height), int(width)


def _tensor(image: Any) -> Tensor:
    """uint8 or float (C, H, W)."""
    if isinstance(image, Image.Image):
        if image.mode == "L":
            return torch.from_numpy(np.array(image))[None]
        return to_tensor(to_rgb(image, upright=False))
    if isinstance(image, np.ndarray):
        array = image[:, :, None] if image.ndim == 2 else image
        image = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    good = isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] in (1, 3)
    if not good or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(
            "an image must be PIL, a uint8 array (H, W) or (H, W, C), or a uint8 or float tensor "
            f"(C, H, W), with 1 or 3 channels, got {_describe(image)}"
        )
    return image


def _pil_image(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    tensor = _tensor(image)
    if tensor.is_floating_point():
        _check_range(tensor)
        tensor = (tensor * 255).round().to(torch.uint8)
    return Image.fromarray(tensor.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _stack(images: list[Tensor]) -> Tensor:
    if len({image.shape for image in images}) > 1:
        sizes = sorted({tuple(image.shape) for image in images})[:2]
        raise ValueError(
            f"images of a batch must have one shape, got {sizes}; pass crop_in_workers=True to "
            "with_views"
        )
    batch = torch.stack(images)
    if batch.is_floating_point():
        _check_range(batch)
    return batch


def _check_range(images: Tensor) -> None:
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"float images must be in [0, 1], got [{low:.3g}, {high:.3g}]; leave normalization "
            "to the transform of with_views"
        )


def _describe(image: Any) -> str:
    shape = tuple(getattr(image, "shape", ()))
    return f"{type(image).__name__} {getattr(image, 'dtype', '')} {shape}"
