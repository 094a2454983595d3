"""ImageDataModule: what all image data modules share.

A subclass says what the sets are (`read`); this class serves them as raw uint8 images on the host
and makes their views on the device.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, NamedTuple

from sslzoo.batch import Batch
from sslzoo.data.datamodule import PredictOn, SampleDataModule, keep
from sslzoo.data.image.images import EvalCrops, ImageSet, TrainCrops
from sslzoo.data.sampler import KeyedSampler
from sslzoo.random import sample_keys
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views

__all__ = ["ImageDataModule", "ImageSets", "PredictOn", "keep"]


class ImageSets(NamedTuple):
    """What `read` finds.

    Args:
        train: the images that methods train on.
        query: the images that evaluation scores (validation or test), or None.
        num_classes: None without labels.
        bank: what evaluation looks up or trains probes on, where that is not `train`.
    """

    train: ImageSet
    query: ImageSet | None
    num_classes: int | None
    bank: ImageSet | None = None


class ImageDataModule(SampleDataModule):
    """Serves image sets; subclasses implement `read` and may implement `prepare_data`.

    Batches leave the loader as raw uint8 images with their index. On the device they become the
    views of `transform` while training, and the one view of `eval_view` otherwise, whose size,
    colors and normalization follow training (`Views.trained_view`) unless one is given.

    Args:
        transform: makes the training views.
        batch_size: the global batch, over all ranks.
        eval_view: makes the one view of evaluation; None: as `transform` says, without a resize
            where every image has the training size (known after `setup`, or by `known_side`).
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that load; None: 0 for arrays, and for files one a core, at most 8.
        seed: of batches and views; None: the run's.
        train_fraction: of the training set that is used, stratified, the same for all seeds.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
    """

    noun = "images"
    known_side: int | None = None  # of every image, where it is known before they are read

    def __init__(
        self,
        transform: Views,
        batch_size: int,
        eval_view: EvalView | None,
        eval_batch_size: int,
        num_workers: int | None,
        seed: int | None,
        train_fraction: float,
        predict_on: PredictOn,
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, seed, train_fraction, predict_on, drop_last
        )
        self.transform = transform
        self.eval_view = eval_view or transform.trained_view(self.known_side)
        self._follows_training = eval_view is None

    def setup(self, stage: str | None = None) -> None:
        """Read the sets once, and let the view of evaluation fit them."""
        first = self._sets is None
        super().setup(stage)
        if first and self._follows_training:
            wanted, sets = self.transform.trained_size, self.sets
            parts = [part for part in (sets.train, sets.query, sets.bank) if part is not None]
            side = parts[0].side(wanted)
            same = side is not None and all(part.side(wanted) == side for part in parts[1:])
            self.eval_view = self.transform.trained_view(side if same else None)

    @abstractmethod
    def read(self) -> ImageSets:
        """The sets; called once, in `setup`.

        Raises:
            ValueError: what is missing or wrong on the disk.
        """

    def train_source(self, sampler: KeyedSampler) -> ImageSet:
        crops = TrainCrops(self.transform, self.seed, sampler.shared_epoch)
        train: ImageSet = self.sets.train
        return train.cropped(crops, keep_size=True)

    def eval_source(self, samples: ImageSet) -> ImageSet:
        return samples.cropped(EvalCrops(self.eval_view), keep_size=False)

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        keys = sample_keys(self.seed, epoch, batch.index)
        if self.sets.train.needs_crops:
            views = self.transform.finish(batch.views, keys)
        else:
            views = self.transform(batch.views[0], keys)
        return self._in_precision(batch._replace(views=views))

    def has_pairs(self) -> bool:
        """Two whole views of one size, normalized as `eval_view` is."""
        transform, sizes = self.transform, self.transform.sizes
        two = len(transform.views) > 1 and transform.split is None and sizes[0] == sizes[1]
        return two and _looks(transform.eval_view(sizes[0])) == _looks(self.eval_view)

    def eval_views(self, batch: Batch) -> Batch:
        finish = self.eval_view.finish if self.sets.train.needs_crops else self.eval_view
        return self._in_precision(batch._replace(views=[finish(batch.views[0])]))

    def encoder_input(self) -> EvalView:
        return self.eval_view

    def preprocessing(self) -> dict[str, Any] | None:
        if not isinstance(self.eval_view, EvalView):
            return None
        about = {"kind": "image", "range": [0.0, 1.0], **self.eval_view.arguments()}
        channels = None if self._sets is None else self._sets.train.channels
        return about if channels is None else {**about, "channels": channels}

    def take_input(self, given: Any) -> None:
        """Its normalization and colors, on images of the own size."""
        self._follows_training = False
        own, view = self.eval_view, given
        self.eval_view = EvalView(
            own.size,
            own.resize,
            view.mean,
            view.std,
            view.interpolation,
            own.fraction,
            view.space,
        )

    def workers(self, samples: ImageSet) -> int:
        return min(8, os.cpu_count() or 1) if samples.needs_crops else 0


def _looks(view: EvalView) -> tuple[object, ...]:
    mean, std = view.mean, view.std
    return (
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
        view.space,
    )
