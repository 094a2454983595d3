"""ImageDataModule: the base class of image data modules.

A subclass implements `read`, which gives the sets. This class reads raw uint8 images on the host
and makes their views on the device.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.batch import Batch
from sslzoo.data.datamodule import PredictOn, SampleDataModule, default_workers
from sslzoo.data.image.image_set import EvalCrops, ImageSet, TrainCrops
from sslzoo.data.sampler import KeyedSampler
from sslzoo.random import sample_keys
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views
from sslzoo.value_range import ValueRange

_SAME = 1e-3  # means and standard deviations that are written with other digits


class ImageSets(NamedTuple):
    """The training and evaluation sets of an image data module.

    Attributes:
        train: the training set.
        query: the set that evaluation scores (validation or test), or None.
        num_classes: number of classes, or None without labels.
        bank: the set for kNN look-ups and probe training; None: `train`.
    """

    train: ImageSet
    query: ImageSet | None
    num_classes: int | None
    bank: ImageSet | None = None


class ImageDataModule(SampleDataModule):
    """Base class of image data modules; subclasses implement `read`.

    The loader gives raw uint8 images with their index. On the device they become the views of
    `transform` in training, and the view of `eval_view` otherwise. The size, color space and
    normalization of that view are derived from `transform` (`Views.trained_view`) by default.

    Args:
        transform: makes the training views.
        batch_size: size of the global batch, over all ranks.
        eval_view: the evaluation view; None: derived from `transform`, without a resize if most
            images have the training size (known after `setup`, or from `known_side`).
        eval_batch_size: batch size in evaluation.
        num_workers: loader processes; None: 0 for arrays, else one per core, at most 8.
        seed: seed of batches and views; None: the run's seed.
        train_fraction: fraction of the training set to use, stratified, the same for all seeds.
        predict_on: the set that `predict` runs on.
        drop_last: drop the last batch of an epoch if it is incomplete.
    """

    noun = "images"
    known_side: int | None = None  # side of every image, if known before reading
    value_range: ValueRange | None = None  # that was declared of the raw images
    clip = False  # whether values outside it are clipped

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
        self._fits = False  # whether images of other sizes than most are resized in evaluation

    def setup(self, stage: str | None = None) -> None:
        """Read the sets once, derive the evaluation view, and check the channels.

        Raises:
            ValueError: an operation of the training views does not take the images' channels.
        """
        first = self._sets is None
        super().setup(stage)
        channels = self.sets.train.channels
        if stage in ("fit", None) and channels is not None and isinstance(self.transform, Views):
            self.transform.check_channels(channels)
        if first and self._follows_training:
            wanted, sets = self.transform.trained_size, self.sets
            parts = [part for part in (sets.train, sets.query, sets.bank) if part is not None]
            side = parts[0].side(wanted)
            same = side is not None and all(part.side(wanted) == side for part in parts[1:])
            self.eval_view = self.transform.trained_view(side if same else None)
            self._fits = same

        if stage in ("fit", None):
            self._check_look()

    def _check_look(self) -> None:
        """Warn about images that a pre-trained net was not trained on."""
        module = None if self.trainer is None else self.trainer.lightning_module
        backbone = getattr(module, "backbone", None)
        for name, none in (("mean", 0.0), ("std", 1.0)):
            wanted = getattr(backbone, f"expected_{name}", None)
            if wanted is None or not hasattr(self.eval_view, name):
                continue
            own = getattr(self.eval_view, name)
            given = [none] * len(wanted) if own is None else list(own)
            given = given * len(wanted) if len(given) == 1 else given
            far = [abs(x - y) > _SAME for x, y in zip(given, wanted, strict=False)]
            if any(far) or len(given) != len(wanted):
                rank_zero_warn(
                    f"{name} of the views must be {list(wanted)}, with which the net was trained, "
                    f"got {own}; set {name} of the transform"
                )

    @abstractmethod
    def read(self) -> ImageSets:
        """Read the sets; called once, by `setup`.

        Raises:
            ValueError: a file is missing or malformed.
        """

    def train_source(self, sampler: KeyedSampler) -> ImageSet:
        crops = TrainCrops(self.transform, self.seed, sampler.shared_epoch)
        train: ImageSet = self.sets.train
        return train.cropped(crops, keep_size=True)

    def eval_source(self, samples: ImageSet) -> ImageSet:
        return samples.cropped(EvalCrops(self.eval_view, self._fits), keep_size=False)

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        keys = sample_keys(self.seed, epoch, batch.index)
        if self.sets.train.needs_crops:
            return self._in_precision(
                batch._replace(views=self.transform.finish(batch.views, keys))
            )
        images = batch.views[0]
        boxes = self.transform.draw_boxes(keys, images.shape[2], images.shape[3])
        views = self.transform(images, keys)
        return self._in_precision(batch._replace(views=views, boxes=boxes))

    def has_pairs(self) -> bool:
        """Whether there are two unsplit views of one size, normalized like `eval_view`."""
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
        about |= {} if channels is None else {"channels": channels}
        if self.value_range is not None:
            about |= {"value_range": list(self.value_range), "clip": self.clip}
        return about

    def take_input(self, given: Any) -> None:
        """Use another encoder's normalization and color space, at our own size."""
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
            own.squash,
        )

    def workers(self, samples: ImageSet) -> int:
        return default_workers() if samples.needs_crops else 0


def _looks(view: EvalView) -> tuple[object, ...]:
    mean, std = view.mean, view.std
    return (
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
        view.space,
    )
