"""SampleDataModule: the base class of the data modules of every modality.

A subclass implements `read`, which gives the sets, and turns batches of raw samples into views.
This class makes keyed batches on the host, makes views on the device, gives the evaluation loaders,
resumes in the middle of an epoch, and checks the data before training.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.checks import check_at_least, check_choice, check_interval
from sslzoo.data.loader import BatchSource, EvalLoader, SingleBatchLoader, TrainLoader
from sslzoo.data.sampler import KeyedSampler, Order
from sslzoo.eval.fingerprint import text_digest
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.random import run_seed, stratified_split
from sslzoo.trust import refuse_objects

PredictOn = Literal["query", "train"]
OnBroken = Literal["error", "skip"]


class SampleSet(ABC):
    """N samples, read as batches of raw samples.

    Attributes:
        left_out: number of further samples that were unreadable when the set was made ("skip").
    """

    labels: Tensor | None
    left_out: int = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, index: list[int]) -> Batch: ...

    @abstractmethod
    def subset(self, rows: Tensor) -> SampleSet:
        """The samples at `rows`, (M,) int64, with indices 0..M-1."""

    @property
    def num_broken(self) -> int:
        """Number of unreadable samples found so far, by this process and its workers."""
        return self.left_out

    def fingerprint(self) -> str | None:
        """Hash of samples and labels; None if unknown, and features are then not cached."""
        return None


class EncoderInput(Protocol):
    """The preprocessing that an encoder expects (`encoder.preprocess`)."""

    def fingerprint(self) -> str:
        """Hash of everything the preprocessing depends on."""


class Sets(NamedTuple):
    """The training and evaluation sets of a data module.

    Attributes:
        train: the training set.
        query: the set that evaluation scores (validation or test), or None.
        num_classes: number of classes, or None without labels.
        bank: the set for kNN look-ups and probe training; None: `train`.
    """

    train: SampleSet
    query: SampleSet | None
    num_classes: int | None
    bank: SampleSet | None = None


class SampleDataModule(LightningDataModule, ABC):
    """Base class of the data modules; subclasses implement the abstract methods.

    Args:
        batch_size: size of the global batch, over all ranks.
        eval_batch_size: batch size in evaluation.
        num_workers: loader processes; None: the subclass's choice (`workers`).
        seed: seed of batches and views; None: the run's seed.
        train_fraction: fraction of the training set to use, stratified, the same for all seeds.
        predict_on: the set that `predict` runs on.
        drop_last: drop the last batch of an epoch if it is incomplete.
    """

    noun = "samples"  # name of the samples in error messages
    views_in_workers = False  # instead of on the device; see `callbacks.ViewsInWorkers`

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int | None,
        seed: int | None,
        train_fraction: float,
        predict_on: PredictOn,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        check_at_least("batch_size", batch_size, 1)
        check_at_least("eval_batch_size", eval_batch_size, 1)
        check_at_least("num_workers", num_workers or 0, 0)
        check_interval("train_fraction", train_fraction, 0, 1, "(]")
        check_choice("predict_on", predict_on, get_args(PredictOn))
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.train_fraction = train_fraction
        self.predict_on = predict_on
        self.drop_last = drop_last
        self._seed = seed
        self._sets: Any = None
        self._train_loader: TrainLoader | None = None
        self._loader_state: dict[str, int] | None = None  # from a checkpoint

    @abstractmethod
    def read(self) -> Any:
        """Read the sets, such as `Sets`; called once, by `setup`.

        Raises:
            ValueError: a file is missing or malformed.
        """

    @abstractmethod
    def train_source(self, sampler: KeyedSampler) -> BatchSource:
        """The raw training batches; random draws depend on `sampler.shared_epoch`."""

    @abstractmethod
    def eval_source(self, samples: Any) -> BatchSource:
        """The raw evaluation batches of one of the sets."""

    @abstractmethod
    def train_views(self, batch: Batch, epoch: int) -> Batch:
        """Turn a raw batch into training views, a function of (seed, epoch, index) alone."""

    @abstractmethod
    def eval_views(self, batch: Batch) -> Batch:
        """Turn a raw batch into the evaluation view."""

    @abstractmethod
    def workers(self, samples: Any) -> int:
        """The default number of loader processes for one of the sets."""

    def eval_order(self, samples: Any) -> Tensor | None:
        """The order in which evaluation reads a set, (N,) int64; None: by index."""
        return None

    def shuffles(self) -> bool:
        """Whether training batches are drawn in random order; False: in the order of the set."""
        return True

    def groups(self) -> Tensor | None:
        """The group per training sample, (N,) int64, for batches of one group; or None."""
        return None

    def order(self) -> Order | None:
        """The order of training samples in each epoch; None: one permutation of all."""
        return None

    def encoder_input(self) -> EncoderInput | None:
        """The preprocessing that an encoder trained on this data expects; None if unknown.

        The method reads the data if the preprocessing depends on it.
        """
        return None

    def preprocessing(self) -> dict[str, Any] | None:
        """`encoder_input` as plain values (`Card.preprocessing`); None if unknown.

        Known after `setup`, and stored in every checkpoint.
        """
        return None

    def take_input(self, given: Any) -> None:
        """Use the preprocessing of another encoder in evaluation; same class as our own.

        Raises:
            ValueError: these samples cannot be preprocessed that way.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has encoder_input, so it must implement take_input"
        )

    @property
    def seed(self) -> int:
        """The seed of batches and views."""
        return run_seed() if self._seed is None else self._seed

    @property
    def sets(self) -> Any:
        """The sets that `read` returned."""
        if self._sets is None:
            raise ValueError("call setup() before reading the data")
        return self._sets

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return len(self.sets.train)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None without labels."""
        return self.sets.num_classes

    def setup(self, stage: str | None = None) -> None:
        """Read the sets once; before training, check the batch size against them."""
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
        """Stop the workers, and warn about the number of unreadable samples."""
        if self._train_loader is not None:
            self._train_loader.close()
        if self._sets is not None and self.num_broken:
            rank_zero_warn(
                f"{self.num_broken} of {self.num_samples + self.sets.train.left_out} training "
                f"{self.noun} were unreadable and skipped"
            )

    @property
    def num_broken(self) -> int:
        """Number of training samples skipped so far (`on_broken="skip"`)."""
        return self.sets.train.num_broken

    # Loaders

    def train_dataloader(self) -> TrainLoader:
        """Loader of this rank's part of each global training batch."""
        sampler = self._sampler()
        source, workers = self.train_source(sampler), self._workers(self.sets.train)
        if self.views_in_workers:
            workers = self._view_workers(workers)
            source = _Viewed(source, self._without_trainer().train_views, sampler.shared_epoch)
        epoch, has_ended = self._sampled_epoch, self._epoch_has_ended
        self._train_loader = TrainLoader(source, sampler, workers, epoch, has_ended)
        if self._loader_state is not None:
            self._train_loader.load_state_dict(self._loader_state)
            self._loader_state = None
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch, and the preprocessing that the encoder expects.

        Lightning 2.6.6 saves the loader's own state too, but does not load it if
        `estimated_stepping_batches` was read before (every schedule reads it).
        """
        loader = self._train_loader
        state = {} if loader is None else {"train_loader": loader.state_dict()}
        preprocessing = None if self._sets is None else self.preprocessing()
        return state if preprocessing is None else {**state, "preprocessing": preprocessing}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loader_state = state_dict.get("train_loader")

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as Lightning does, but read plain values only, no classes.

        Args:
            checkpoint_path: a path or an open file.
            args: see `LightningDataModule.load_from_checkpoint`.
            kwargs: likewise; constructor arguments that override the file's.
        """
        hparams_file = args[1] if len(args) > 1 else kwargs.get("hparams_file")
        if hparams_file is not None:
            refuse_objects(hparams_file)
        # Lightning's instantiator would build any class that the file names.
        plain = {**kwargs, "_instantiator": None, "weights_only": True}
        return super().load_from_checkpoint(checkpoint_path, *args[:2], **plain)

    def val_dataloader(self) -> SingleBatchLoader:
        """A single batch, whole for any `limit_val_batches`; callbacks use `eval_dataloaders`."""
        limit = getattr(self.trainer, "limit_val_batches", None)
        if isinstance(limit, float) and 0 < limit < 1:
            self.trainer.limit_val_batches = 1  # type: ignore[union-attr]
        return SingleBatchLoader(self.eval_source(self._query()))

    def test_dataloader(self) -> SingleBatchLoader:
        """A single batch; callbacks evaluate on `eval_dataloaders`."""
        return SingleBatchLoader(self.eval_source(self._query()))

    def predict_dataloader(self) -> EvalLoader:
        """The query set (or `predict_on`) in order, with the evaluation view."""
        samples = self.sets.train if self.predict_on == "train" else self._query()
        if self.trainer is not None:
            self.check_module(self.trainer.lightning_module)
        return self.eval_loader(samples)

    def eval_dataloaders(self) -> EvalLoaders:
        """The bank and query loaders for kNN, probes and other evaluation."""
        sets = self.sets
        return EvalLoaders(
            bank=self.eval_loader(sets.train if sets.bank is None else sets.bank),
            query=None if sets.query is None else self.eval_loader(sets.query),
            transform=self.eval_views,
            num_classes=sets.num_classes,
            sharded=True,
            ordered=self.eval_order(sets.train) is None,
            check=self.check_module,
        )

    def check_module(self, module: Any) -> None:
        """Refuse evaluation samples that a module cannot embed; by default none are known.

        Raises:
            ValueError: says how many there are, and which is the first.
        """

    def with_input(self, given: EncoderInput) -> SampleDataModule:
        """The same data with the preprocessing of another encoder in evaluation.

        Args:
            given: that encoder's preprocessing, such as `preprocess` of a zoo encoder.

        Returns:
            A copy, or `self` if its own `encoder_input` is unknown.

        Raises:
            ValueError: these samples cannot be preprocessed that way.
        """
        own = self.encoder_input()
        if own is None:
            return self
        if type(given) is not type(own):
            raise ValueError(
                f"the encoder's preprocess must be {type(own).__name__} for the {self.noun} of "
                f"{type(self).__name__}, got {type(given).__name__}"
            )
        other = copy.copy(self)
        other.take_input(given)
        return other

    def eval_sets(self) -> dict[str, Any]:
        """The sets that evaluation reads, by name."""
        sets = self.sets
        bank = sets.train if sets.bank is None else sets.bank
        return {"bank": bank} if sets.query is None else {"bank": bank, "query": sets.query}

    def fingerprint(self) -> str | None:
        """Hash of everything that extracted features depend on besides the encoder, or None."""
        own = self.encoder_input()
        found = {"input": None if own is None else own.fingerprint()}
        found |= {name: samples.fingerprint() for name, samples in self.eval_sets().items()}
        parts = [part for item in found.items() for part in item if part is not None]
        return text_digest(parts) if len(parts) == 2 * len(found) else None

    def eval_loader(self, samples: Any) -> EvalLoader:
        """Loader of a set or subset: each sample once, with the evaluation view."""
        order = self.eval_order(samples)
        workers = self._workers(samples)
        source = self.eval_source(samples)
        return EvalLoader(source, self.eval_batch_size, workers, order=order)

    def has_pairs(self) -> bool:
        """Whether the first two training views are comparable views of one sample."""
        return False

    def preview(self, rows: list[int], epoch: int = 0) -> Batch:
        """The training views of the samples at `rows` in an epoch."""
        total = self.num_samples  # independent of batch_size and the number of ranks
        sampler = KeyedSampler(total, total, self.seed, rank=0, world=1)
        sampler.set_epoch(epoch)
        return self.train_views(self.train_source(sampler).__getitems__(rows), epoch)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make the views on the batch's device, if the workers have not made them."""
        epoch = self._trainer_epoch()
        if epoch is None:
            return self.eval_views(batch)
        if self.views_in_workers:
            return self._in_precision(batch)
        return self.train_views(batch, epoch)

    def _in_precision(self, batch: Batch) -> Batch:
        """Convert views to the trainer's `precision`, which converts batches only on loading."""
        if self.trainer is None:
            return batch
        return self.trainer.precision_plugin.convert_input(batch)

    def _sampler(self) -> KeyedSampler:
        return KeyedSampler(
            *(self.num_samples, self.batch_size, self.seed, self.drop_last, self.shuffles()),
            groups=self.groups(),
            order=self.order(),
        )

    def _trainer_epoch(self) -> int | None:
        """The epoch in training; None otherwise."""
        training = self.trainer is not None and self.trainer.training
        return self.trainer.current_epoch if training else None  # type: ignore[union-attr]

    def _sampled_epoch(self) -> int | None:
        """The epoch whose batches are drawn: always the first with `overfit_batches`."""
        epoch = self._trainer_epoch()
        overfits = epoch is not None and cast(Any, self.trainer).overfit_batches > 0
        return 0 if overfits else epoch

    def _epoch_has_ended(self) -> bool:
        """Whether the trainer is behind the last batch of an epoch, and before the next."""
        if self.trainer is None:
            return False
        loop: Any = self.trainer.fit_loop
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
        return bool(epochs.ready == epochs.processed and batches.is_last_batch)

    def _query(self) -> Any:
        sets = self.sets
        return sets.train if sets.query is None else sets.query

    def _workers(self, samples: Any) -> int:
        return self.workers(samples) if self.num_workers is None else self.num_workers

    def _view_workers(self, usual: int) -> int:
        """The number of workers that make views.

        Raises:
            ValueError: there are none, or the trainer makes the views of one epoch's batches anew.
        """
        if self.num_workers == 0:
            raise ValueError("num_workers must be at least 1 to make views in workers, got 0")
        overfits = 0 if self.trainer is None else cast(Any, self.trainer).overfit_batches
        if overfits:
            raise ValueError(
                f"overfit_batches must be 0 to make views in workers, got {overfits}: each epoch "
                "has the batches of the first, and workers would repeat its views"
            )
        return usual or default_workers()

    def _without_trainer(self) -> SampleDataModule:
        """A copy for the workers, whose views keep their precision until they are on the device."""
        other = copy.copy(self)
        other.trainer = other._train_loader = None
        return other


class _Viewed:
    """Training batches with their views, for workers.

    Args:
        source: raw training batches.
        views: makes the views of a batch in an epoch.
        epoch: shared int64 scalar that the sampler writes.
    """

    def __init__(
        self, source: BatchSource, views: Callable[[Batch, int], Batch], epoch: Tensor
    ) -> None:
        self.source, self.views, self.epoch = source, views, epoch

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, index: list[int]) -> Batch:
        return self.views(self.source.__getitems__(index), int(self.epoch))


def default_workers() -> int:
    """The number of processes to decode with: one per core, at most 8."""
    return min(8, os.cpu_count() or 1)


def readable_rows(good: list[bool], keep_size: bool) -> list[int]:
    """The source row of each batch row: itself, or the next readable one, cyclically.

    Args:
        good: whether each row is readable.
        keep_size: whether an unreadable row is filled (training) or dropped (evaluation).

    Returns:
        Row numbers; empty if no row is readable.
    """
    readable = [row for row, is_good in enumerate(good) if is_good]
    if not keep_size or not readable:
        return readable
    n = len(good)
    return [next(r % n for r in range(row, row + n) if good[r % n]) for row in range(n)]
