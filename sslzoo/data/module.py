"""ImageDataModule: what all image data modules share.

A subclass says what the sets are (`read`); this class serves them: keyed batches of raw uint8
images on the host, views on the device, the loaders of evaluation, and checks before training.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.images import EvalCrops, ImageSet, TrainCrops
from sslzoo.data.loader import EvalLoader, TokenLoader, TrainLoader
from sslzoo.data.sampler import KeyedSampler
from sslzoo.data.split import stratified_split
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.random import run_seed, sample_keys
from sslzoo.transforms.eval_view import EvalView
from sslzoo.transforms.views import Views

PredictOn = Literal["query", "train"]


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


class ImageDataModule(LightningDataModule, ABC):
    """Serves image sets; subclasses implement `read` and may implement `prepare_data`.

    Batches leave the loader as raw uint8 images with their index. On the device they become the
    views of `transform` while training, and the one view of `eval_view` otherwise.

    Args:
        transform: makes the training views.
        batch_size: the global batch, over all ranks.
        eval_view: makes the one view of evaluation.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that load; None: 0 for arrays, and for files one a core, at most 8.
        seed: of batches and views; None: the run's.
        train_fraction: of the training set that is used, stratified, the same for all seeds.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
    """

    def __init__(
        self,
        transform: Views,
        batch_size: int,
        eval_view: EvalView,
        eval_batch_size: int,
        num_workers: int | None,
        seed: int | None,
        train_fraction: float,
        predict_on: PredictOn,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers or 0, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 < train_fraction <= 1:
            raise ValueError(f"train_fraction must be in (0, 1], got {train_fraction}")
        if predict_on not in ("query", "train"):
            raise ValueError(f'predict_on must be "query" or "train", got {predict_on!r}')
        self.transform = transform
        self.eval_view = eval_view
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.train_fraction = train_fraction
        self.predict_on = predict_on
        self.drop_last = drop_last
        self._seed = seed
        self._sets: ImageSets | None = None
        self._train_loader: TrainLoader | None = None
        self._place: dict[str, int] | None = None  # of a checkpoint, for the next train loader

    @abstractmethod
    def read(self) -> ImageSets:
        """The sets; called once, in `setup`.

        Raises:
            ValueError: what is missing or wrong on the disk.
        """

    @property
    def seed(self) -> int:
        """The seed of batches and views."""
        return run_seed() if self._seed is None else self._seed

    @property
    def sets(self) -> ImageSets:
        """What `read` found."""
        if self._sets is None:
            raise ValueError("call setup() before reading the data")
        return self._sets

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return len(self.sets.train)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without labels."""
        return self.sets.num_classes

    def setup(self, stage: str | None = None) -> None:
        """Read the sets once; before training, check that batches can be made of them."""
        if self._sets is None:
            sets = self.read()
            if self.train_fraction < 1:
                train = sets.train
                _, rows = stratified_split(train.labels, len(train), self.train_fraction)
                sets = sets._replace(train=train.subset(rows))
            self._sets = sets
        if stage in ("fit", None):
            self._sampler()

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers, and say how many images could not be read."""
        if self._train_loader is not None:
            self._train_loader.close()
        if self._sets is not None and self.num_broken:
            rank_zero_warn(
                f"{self.num_broken} of {self.num_samples} training images could not be read and "
                "were skipped"
            )

    @property
    def num_broken(self) -> int:
        """Training images skipped by workers so far (`on_broken="skip"`)."""
        return self.sets.train.num_broken

    # Loaders

    def train_dataloader(self) -> TrainLoader:
        """This rank's part of each global batch; ends with the last whole batch."""
        sampler = self._sampler()
        crops = TrainCrops(self.transform, self.seed, sampler.shared_epoch)
        train = self.sets.train.cropped(crops, keep_size=True)
        workers = self._workers(train)
        self._train_loader = TrainLoader(train, sampler, workers, self._trainer_epoch)
        if self._place is not None:
            self._train_loader.load_state_dict(self._place)
            self._place = None
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch.

        Lightning 2.6.6 saves the loader's own state too, but does not load it where somebody
        asked for `estimated_stepping_batches` before (every schedule does).
        """
        loader = self._train_loader
        return {} if loader is None else {"train_loader": loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._place = state_dict.get("train_loader")

    def val_dataloader(self) -> TokenLoader:
        """A token batch: callbacks go through `eval_dataloaders`."""
        return TokenLoader(self._eval_set(self._query()))

    def test_dataloader(self) -> TokenLoader:
        """A token batch: callbacks go through `eval_dataloaders`."""
        return TokenLoader(self._eval_set(self._query()))

    def predict_dataloader(self) -> EvalLoader:
        """The query (or, by `predict_on`, the training) set in order, with the eval view."""
        images = self.sets.train if self.predict_on == "train" else self._query()
        return self._eval_loader(images)

    def eval_dataloaders(self) -> EvalLoaders:
        """The loaders that kNN, probes and other evaluation go through."""
        sets = self.sets
        return EvalLoaders(
            bank=self._eval_loader(sets.train if sets.bank is None else sets.bank),
            query=None if sets.query is None else self._eval_loader(sets.query),
            transform=self.eval_views,
            num_classes=sets.num_classes,
            sharded=True,
        )

    # Views, on the batch's device

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        """Raw batch to training views, a function of (seed, epoch, index) alone."""
        keys = sample_keys(self.seed, epoch, batch.index)
        if self.sets.train.needs_crops:
            views = self.transform.finish(batch.views, keys)
        else:
            views = self.transform(batch.views[0], keys)
        return self._in_precision(batch._replace(views=views))

    def eval_views(self, batch: Batch) -> Batch:
        """Raw batch to the one view of evaluation."""
        finish = self.eval_view.finish if self.sets.train.needs_crops else self.eval_view
        return self._in_precision(batch._replace(views=[finish(batch.views[0])]))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make the views, on the device that the batch was moved to."""
        if self.trainer is None or not self.trainer.training:
            return self.eval_views(batch)
        return self.train_views(batch, self.trainer.current_epoch)

    # Parts

    def _in_precision(self, batch: Batch) -> Batch:
        """Views in the trainer's `precision`, which converts batches only as they are loaded."""
        if self.trainer is None:
            return batch
        return self.trainer.precision_plugin.convert_input(batch)

    def _sampler(self) -> KeyedSampler:
        return KeyedSampler(self.num_samples, self.batch_size, self.seed, self.drop_last)

    def _trainer_epoch(self) -> int | None:
        training = self.trainer is not None and self.trainer.training
        return self.trainer.current_epoch if training else None  # type: ignore[union-attr]

    def _query(self) -> ImageSet:
        sets = self.sets
        return sets.train if sets.query is None else sets.query

    def _workers(self, images: ImageSet) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return min(8, os.cpu_count() or 1) if images.needs_crops else 0

    def _eval_set(self, images: ImageSet) -> ImageSet:
        return images.cropped(EvalCrops(self.eval_view), keep_size=False)

    def _eval_loader(self, images: ImageSet) -> EvalLoader:
        return EvalLoader(self._eval_set(images), self.eval_batch_size, self._workers(images))


def keep(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    """Labels of the rows that could be read. Shapes: rows (M,) int64."""
    return None if labels is None else labels[rows]
