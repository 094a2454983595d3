"""SampleDataModule: what data modules of every modality share.

A subclass says what the sets are (`read`) and how a batch of raw samples becomes views; this class
serves them: keyed batches on the host, views on the device, the loaders of evaluation, a place in
the epoch that resumes, and checks before training.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, Protocol

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.loader import BatchSource, EvalLoader, TokenLoader, TrainLoader
from sslzoo.data.sampler import KeyedSampler
from sslzoo.eval.fingerprint import text_digest
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.random import run_seed, stratified_split
from sslzoo.trust import refuse_objects

PredictOn = Literal["query", "train"]


class SampleSet(ABC):
    """N samples that make batches of raw samples.

    Attributes:
        left_out: samples besides, which could not be read when the set was made ("skip").
    """

    labels: Tensor | None
    left_out: int = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, index: list[int]) -> Batch: ...

    @abstractmethod
    def subset(self, rows: Tensor) -> SampleSet:
        """The samples of these rows, numbered anew. Shapes: rows (M,) int64."""

    @property
    def num_broken(self) -> int:
        """Samples that could not be read so far: then, in this process and in its workers."""
        return self.left_out

    def fingerprint(self) -> str | None:
        """Changes where samples or labels do; None: it cannot be told, and nothing is cached."""
        return None


class EncoderInput(Protocol):
    """Makes of samples what an encoder takes (`encoder.preprocess`)."""

    def fingerprint(self) -> str:
        """Changes where what it makes does."""


class Sets(NamedTuple):
    """What `read` finds.

    Args:
        train: the samples that methods train on.
        query: those that evaluation scores (validation or test), or None.
        num_classes: None without labels.
        bank: what evaluation looks up or trains probes on, where that is not `train`.
    """

    train: SampleSet
    query: SampleSet | None
    num_classes: int | None
    bank: SampleSet | None = None


class SampleDataModule(LightningDataModule, ABC):
    """Serves sets of samples; a subclass may implement `prepare_data` besides what is abstract.

    Args:
        batch_size: the global batch, over all ranks.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that load; None: as many as the set needs.
        seed: of batches and views; None: the run's.
        train_fraction: of the training set that is used, stratified, the same for all seeds.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
    """

    noun = "samples"  # in messages

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
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.train_fraction = train_fraction
        self.predict_on = predict_on
        self.drop_last = drop_last
        self._seed = seed
        self._sets: Any = None
        self._train_loader: TrainLoader | None = None
        self._place: dict[str, int] | None = None  # of a checkpoint, for the next train loader

    @abstractmethod
    def read(self) -> Any:
        """The sets, such as `Sets`; called once, in `setup`.

        Raises:
            ValueError: what is missing or wrong on the disk.
        """

    @abstractmethod
    def train_source(self, sampler: KeyedSampler) -> BatchSource:
        """What makes the raw batches of training; its draws follow `sampler.shared_epoch`."""

    @abstractmethod
    def eval_source(self, samples: Any) -> BatchSource:
        """What makes the raw batches of evaluation, of one of the sets."""

    @abstractmethod
    def train_views(self, batch: Batch, epoch: int) -> Batch:
        """Raw batch to training views, a function of (seed, epoch, index) alone."""

    @abstractmethod
    def eval_views(self, batch: Batch) -> Batch:
        """Raw batch to the one view of evaluation."""

    @abstractmethod
    def workers(self, samples: Any) -> int:
        """Processes that load one of the sets, where the user did not say."""

    def eval_order(self, samples: Any) -> Tensor | None:
        """The order that evaluation reads a set in, (N,) int64; None: that of the index."""
        return None

    def groups(self) -> Tensor | None:
        """Where batches are of one group each, each training sample's, (N,) int64."""
        return None

    def encoder_input(self) -> EncoderInput | None:
        """What makes samples what encoders that are trained on this data take; None: not told.

        It sets up what it needs of the data.
        """
        return None

    def preprocessing(self) -> dict[str, Any] | None:
        """What `encoder_input` does, as plain values (`Card.preprocessing`); None: not known.

        It is known once the sets are read, and stored in every checkpoint.
        """
        return None

    def take_input(self, given: Any) -> None:
        """Let evaluation make samples as another data's `encoder_input` does, of the own class.

        Raises:
            ValueError: this data cannot be made so.
        """
        raise NotImplementedError(f"{type(self).__name__} tells encoder_input and no take_input")

    @property
    def seed(self) -> int:
        """The seed of batches and views."""
        return run_seed() if self._seed is None else self._seed

    @property
    def sets(self) -> Any:
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
        """Stop the workers, and say how many samples could not be read."""
        if self._train_loader is not None:
            self._train_loader.close()
        if self._sets is not None and self.num_broken:
            rank_zero_warn(
                f"{self.num_broken} of {self.num_samples + self.sets.train.left_out} training "
                f"{self.noun} could not be read and were skipped"
            )

    @property
    def num_broken(self) -> int:
        """Training samples skipped so far (`on_broken="skip"`), in workers or in memory."""
        return self.sets.train.num_broken

    # Loaders

    def train_dataloader(self) -> TrainLoader:
        """This rank's part of each global batch; ends with the last whole batch."""
        sampler = self._sampler()
        source, workers = self.train_source(sampler), self._workers(self.sets.train)
        self._train_loader = TrainLoader(source, sampler, workers, self._trainer_epoch)
        if self._place is not None:
            self._train_loader.load_state_dict(self._place)
            self._place = None
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, and the preprocessing that the encoder expects.

        Lightning 2.6.6 saves the loader's own state too, but does not load it where somebody
        asked for `estimated_stepping_batches` before (every schedule does).
        """
        loader = self._train_loader
        place = {} if loader is None else {"train_loader": loader.state_dict()}
        about = None if self._sets is None else self.preprocessing()
        return place if about is None else {**place, "preprocessing": about}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._place = state_dict.get("train_loader")

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Lightning's, for a file that is read as plain values and names no classes.

        Args:
            checkpoint_path: a path or an open file.
            args: see `LightningDataModule.load_from_checkpoint`.
            kwargs: likewise; arguments of the module, in place of the file's.
        """
        hparams_file = args[1] if len(args) > 1 else kwargs.get("hparams_file")
        if hparams_file is not None:
            refuse_objects(hparams_file)
        # Lightning's instantiator would build whatever the file names.
        plain = {**kwargs, "_instantiator": None, "weights_only": True}
        return super().load_from_checkpoint(checkpoint_path, *args[:2], **plain)

    def val_dataloader(self) -> TokenLoader:
        """A token batch: callbacks go through `eval_dataloaders`."""
        return TokenLoader(self.eval_source(self._query()))

    def test_dataloader(self) -> TokenLoader:
        """A token batch: callbacks go through `eval_dataloaders`."""
        return TokenLoader(self.eval_source(self._query()))

    def predict_dataloader(self) -> EvalLoader:
        """The query (or, by `predict_on`, the training) set in order, with the eval view."""
        samples = self.sets.train if self.predict_on == "train" else self._query()
        return self.eval_loader(samples)

    def eval_dataloaders(self) -> EvalLoaders:
        """The loaders that kNN, probes and other evaluation go through."""
        sets = self.sets
        return EvalLoaders(
            bank=self.eval_loader(sets.train if sets.bank is None else sets.bank),
            query=None if sets.query is None else self.eval_loader(sets.query),
            transform=self.eval_views,
            num_classes=sets.num_classes,
            sharded=True,
            ordered=self.eval_order(sets.train) is None,
        )

    def with_input(self, given: EncoderInput) -> SampleDataModule:
        """The same data, its samples made in evaluation what another encoder takes.

        Args:
            given: such as the `preprocess` of an encoder of the zoo.

        Returns:
            A copy; or itself, where it does not tell its own `encoder_input`.

        Raises:
            ValueError: the encoder takes other samples than these can be made.
        """
        own = self.encoder_input()
        if own is None:
            return self
        if type(given) is not type(own):
            raise ValueError(
                f"{type(self).__name__} serves {self.noun}, for an encoder whose preprocess is "
                f"{type(own).__name__}; this one's is {type(given).__name__}"
            )
        other = copy.copy(self)
        other.take_input(given)
        return other

    def eval_sets(self) -> dict[str, Any]:
        """What evaluation reads, by name."""
        sets = self.sets
        bank = sets.train if sets.bank is None else sets.bank
        return {"bank": bank} if sets.query is None else {"bank": bank, "query": sets.query}

    def fingerprint(self) -> str | None:
        """Changes where an encoder's features of evaluation would; None: it cannot be told."""
        own = self.encoder_input()
        found = {"input": None if own is None else own.fingerprint()}
        found |= {name: samples.fingerprint() for name, samples in self.eval_sets().items()}
        parts = [part for item in found.items() for part in item if part is not None]
        return text_digest(parts) if len(parts) == 2 * len(found) else None

    def eval_loader(self, samples: Any) -> EvalLoader:
        """One of the sets, or a subset of one, each sample once, with the eval view."""
        order = self.eval_order(samples)
        workers = self._workers(samples)
        source = self.eval_source(samples)
        return EvalLoader(source, self.eval_batch_size, workers, order=order)

    def has_pairs(self) -> bool:
        """Whether the first two training views differ, and both are what the encoder knows."""
        return False

    def preview(self, rows: list[int], epoch: int = 0) -> Batch:
        """The training views of these samples in an epoch, as a method is given them."""
        total = self.num_samples  # whatever batch_size and the number of ranks are
        sampler = KeyedSampler(total, total, self.seed, rank=0, world=1)
        sampler.set_epoch(epoch)
        return self.train_views(self.train_source(sampler).__getitems__(rows), epoch)

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
        return KeyedSampler(
            self.num_samples, self.batch_size, self.seed, self.drop_last, groups=self.groups()
        )

    def _trainer_epoch(self) -> int | None:
        training = self.trainer is not None and self.trainer.training
        return self.trainer.current_epoch if training else None  # type: ignore[union-attr]

    def _query(self) -> Any:
        sets = self.sets
        return sets.train if sets.query is None else sets.query

    def _workers(self, samples: Any) -> int:
        return self.workers(samples) if self.num_workers is None else self.num_workers


def keep(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    """Labels of the rows that could be read. Shapes: rows (M,) int64."""
    return None if labels is None else labels[rows]


def readable_rows(good: list[bool], keep_size: bool) -> list[int]:
    """The row that fills each row of a batch: itself, or the next one that could be read.

    Args:
        good: whether each row could be read.
        keep_size: whether a broken row is filled (training) or left out (evaluation).

    Returns:
        Rows; none where no row could be read.
    """
    readable = [row for row, is_good in enumerate(good) if is_good]
    if not keep_size or not readable:
        return readable
    n = len(good)
    return [next(r % n for r in range(row, row + n) if good[r % n]) for row in range(n)]
