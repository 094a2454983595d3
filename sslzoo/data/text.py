"""TextDataModule: what all data modules of text share, and the ones for files and data sets.

Batches leave the loader as ids without special tokens; on the device they become the views of
`transform` while training, and the sentence between [CLS] and [SEP] otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule

from sslzoo.batch import Batch
from sslzoo.data.lines import (
    FileLines,
    Lines,
    ListLines,
    Sentences,
    Text,
    read_labelled,
    read_pairs,
    walk,
)
from sslzoo.data.loader import EvalLoader, TokenLoader, TrainLoader
from sslzoo.data.module import PredictOn
from sslzoo.data.sampler import KeyedSampler
from sslzoo.data.tokenizer import TextTokenizer
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.random import run_seed, sample_keys
from sslzoo.tokens import with_special
from sslzoo.transforms.text_views import TextViews


class TextSets(NamedTuple):
    """What `read` finds.

    Args:
        train: what methods train on.
        query: labelled sentences that evaluation scores, or None.
        bank: labelled sentences that probes are trained on, where these are not `train`.
        num_classes: None without labels.
        pairs: scored pairs by name, such as "dev": 2N lines each, see `read_pairs`.
    """

    train: Text
    query: Text | None = None
    bank: Text | None = None
    num_classes: int | None = None
    pairs: dict[str, Text] = {}  # noqa: RUF012 (never changed)


class TextDataModule(LightningDataModule, ABC):
    """Serves text; subclasses implement `read` and may implement `prepare_data`.

    Args:
        transform: makes the training views.
        tokenizer: text to ids; one that is trained is trained on the training text.
        batch_size: the global batch, over all ranks.
        max_length: places of a view, [CLS] and [SEP] among them; longer text is cut.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that read and tokenize.
        seed: of batches and views; None: the run's.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
    """

    def __init__(
        self,
        transform: TextViews,
        tokenizer: TextTokenizer,
        batch_size: int,
        max_length: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int | None,
        predict_on: PredictOn,
        drop_last: bool,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("max_length", max_length, 3),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if predict_on not in ("query", "train"):
            raise ValueError(f'predict_on must be "query" or "train", got {predict_on!r}')
        self.transform, self.tokenizer = transform, tokenizer
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length, self.num_workers = max_length, num_workers
        self.predict_on, self.drop_last = predict_on, drop_last
        self._seed = seed
        self._sets: TextSets | None = None
        self._train_loader: TrainLoader | None = None
        self._place: dict[str, int] | None = None  # of a checkpoint, for the next train loader

    @abstractmethod
    def read(self) -> TextSets:
        """The sets; called once, in `setup`.

        Raises:
            ValueError: what is missing or wrong on the disk.
        """

    @property
    def seed(self) -> int:
        """The seed of batches and views."""
        return run_seed() if self._seed is None else self._seed

    @property
    def sets(self) -> TextSets:
        """What `read` found."""
        if self._sets is None:
            raise ValueError("call setup() before reading the data")
        return self._sets

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return len(self.sets.train.lines)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without labels."""
        return self.sets.num_classes

    def setup(self, stage: str | None = None) -> None:
        """Read the sets and make the tokenizer, once; check that batches can be made of them."""
        if self._sets is None:
            self._sets = self.read()
            self.tokenizer.prepare(walk(self._sets.train.lines))
            self.transform.prepare(self.tokenizer)
        self._check_vocabulary()
        if stage in ("fit", None):
            self._sampler()

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers."""
        if self._train_loader is not None:
            self._train_loader.close()

    # Loaders

    def train_dataloader(self) -> TrainLoader:
        """This rank's part of each global batch; ends with the last whole batch."""
        train = self._sentences(self.sets.train)
        loader = TrainLoader(train, self._sampler(), self.num_workers, self._trainer_epoch)
        if self._place is not None:
            loader.load_state_dict(self._place)
            self._place = None
        self._train_loader = loader
        return loader

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch (see `ImageDataModule`), and which vocabulary this is."""
        loader = self._train_loader
        place = {} if loader is None else {"train_loader": loader.state_dict()}
        return {**place, "tokenizer": self.tokenizer.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._place = state_dict.get("train_loader")
        if state_dict["tokenizer"] != self.tokenizer.digest:
            raise ValueError(
                "the checkpoint was made with another vocabulary (its digest is "
                f"{state_dict['tokenizer'][:12]}, this one's {self.tokenizer.digest[:12]}): give "
                "the same training text, or the tokenizer's file"
            )

    def val_dataloader(self) -> TokenLoader:
        """A token batch: callbacks go through `eval_dataloaders`."""
        return TokenLoader(self._sentences(self._query()))

    def test_dataloader(self) -> TokenLoader:
        """A token batch: callbacks go through `eval_dataloaders`."""
        return TokenLoader(self._sentences(self._query()))

    def predict_dataloader(self) -> EvalLoader:
        """The query (or, by `predict_on`, the training) set in order."""
        return self._eval_loader(self.sets.train if self.predict_on == "train" else self._query())

    def eval_dataloaders(self) -> EvalLoaders:
        """The loaders that kNN, probes and other evaluation go through."""
        sets = self.sets
        bank = sets.train if sets.bank is None else sets.bank
        query = None if sets.query is None else self._eval_loader(sets.query)
        return EvalLoaders(
            self._eval_loader(bank), query, self.eval_views, sets.num_classes, sharded=True
        )

    def similarity_dataloaders(self) -> dict[str, EvalLoaders]:
        """Scored pairs by name, each as a bank: rows 2i and 2i + 1 are a pair, labels its score."""
        return {
            name: EvalLoaders(self._eval_loader(text), None, self.eval_views, None, sharded=True)
            for name, text in self.sets.pairs.items()
        }

    # Views, on the batch's device

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        """Raw batch to training views, a function of (seed, epoch, index) alone."""
        keys = sample_keys(self.seed, epoch, batch.index)
        return batch._replace(views=self.transform(batch.views[0], keys, self.tokenizer.special))

    def eval_views(self, batch: Batch) -> Batch:
        """Raw batch to the one view of evaluation."""
        return batch._replace(views=[with_special(batch.views[0], self.tokenizer.special)])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make the views, on the device that the batch was moved to."""
        if self.trainer is None or not self.trainer.training:
            return self.eval_views(batch)
        return self.train_views(batch, self.trainer.current_epoch)

    # Parts

    def _check_vocabulary(self) -> None:
        """The model's embedding has a row for every id."""
        module = None if self.trainer is None else self.trainer.lightning_module
        rows = getattr(getattr(module, "backbone", None), "num_ids", None)
        if rows is not None and rows < self.tokenizer.num_ids:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.num_ids} ids and the backbone num_ids={rows}"
            )
        mask_id = getattr(module, "mask_id", None)
        if mask_id is not None and mask_id != self.tokenizer.special.mask:
            raise ValueError(
                f"the tokenizer's [MASK] is {self.tokenizer.special.mask}, the method's {mask_id}"
            )

    def _sampler(self) -> KeyedSampler:
        return KeyedSampler(self.num_samples, self.batch_size, self.seed, self.drop_last)

    def _trainer_epoch(self) -> int | None:
        training = self.trainer is not None and self.trainer.training
        return self.trainer.current_epoch if training else None  # type: ignore[union-attr]

    def _query(self) -> Text:
        return self.sets.train if self.sets.query is None else self.sets.query

    def _sentences(self, text: Text) -> Sentences:
        return Sentences(text, self.tokenizer, self.max_length - 2)

    def _eval_loader(self, text: Text) -> EvalLoader:
        return EvalLoader(self._sentences(text), self.eval_batch_size, self.num_workers)


class TextLines(TextDataModule):
    """A sentence a line, of a file of any size; labelled sentences and scored pairs beside it.

    Args:
        root: the text file that methods train on.
        transform: makes the training views.
        tokenizer: text to ids; one that is trained is trained on the training text.
        batch_size: the global batch, over all ranks.
        max_length: places of a view, [CLS] and [SEP] among them; longer text is cut.
        labelled_train: file of `label<TAB>sentence` lines that probes are trained on.
        labelled_test: the like, that they are scored on.
        pairs: CSV files of (sentence, sentence, score) rows, by the name of their metric.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that read and tokenize.
        seed: of batches and views; None: the run's.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
    """

    def __init__(
        self,
        root: str,
        transform: TextViews,
        tokenizer: TextTokenizer,
        batch_size: int = 256,
        max_length: int = 64,
        labelled_train: str | None = None,
        labelled_test: str | None = None,
        pairs: dict[str, str] | None = None,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            transform,
            tokenizer,
            batch_size,
            max_length,
            eval_batch_size,
            num_workers,
            seed,
            predict_on,
            drop_last,
        )
        if (labelled_train is None) != (labelled_test is None):
            raise ValueError(
                "labelled_train and labelled_test come together, got "
                f"{labelled_train!r} and {labelled_test!r}"
            )
        self.root, self.pairs = root, pairs or {}
        self.labelled_train, self.labelled_test = labelled_train, labelled_test

    def read(self) -> TextSets:
        """Where the lines begin; labelled sentences and pairs in memory."""
        sets = TextSets(
            Text(FileLines(self.root)),
            pairs={name: read_pairs(path) for name, path in self.pairs.items()},
        )
        if self.labelled_train is None or self.labelled_test is None:
            return sets
        bank, classes = read_labelled(self.labelled_train)
        query, _ = read_labelled(self.labelled_test, classes)
        return sets._replace(bank=bank, query=query, num_classes=len(classes))


class STSB(TextDataModule):
    """STS-B: trains on the sentences of its training pairs, without the scores.

    Cer et al., SemEval 2017, https://arxiv.org/abs/1708.00055: 5,749 pairs for training (10,536
    distinct sentences), 1,500 "dev" and 1,379 "test" pairs with scores from 0 to 5.

    Args:
        root: the folder that holds train.csv, dev.csv and test.csv of (sentence, sentence, score)
            rows, or its parent where it is called `stsb`.
        transform: makes the training views.
        tokenizer: text to ids; one that is trained is trained on the training sentences.
        batch_size: the global batch, over all ranks.
        max_length: places of a view, [CLS] and [SEP] among them; longer text is cut.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that tokenize.
        seed: of batches and views; None: the run's.
        drop_last: leave out an epoch's last batch where it is short.
    """

    def __init__(
        self,
        root: str,
        transform: TextViews,
        tokenizer: TextTokenizer,
        batch_size: int = 256,
        max_length: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            transform,
            tokenizer,
            batch_size,
            max_length,
            eval_batch_size,
            num_workers,
            seed,
            "train",
            drop_last,
        )
        self.root = root

    def read(self) -> TextSets:
        """All three parts, in memory."""
        folder = Path(self.root).expanduser()
        inner = folder / "stsb"
        folder = inner if inner.is_dir() else folder
        train, dev, test = (read_pairs(folder / f"{part}.csv") for part in ("train", "dev", "test"))
        distinct = dict.fromkeys(walk(train.lines))  # in the order of their first appearance
        return TextSets(Text(ListLines(list(distinct))), pairs={"dev": dev, "test": test})


class HFText(TextDataModule):
    """A Hugging Face data set by name: its training split's text, labels where they are wanted.

    Args:
        name: such as "wikitext" or "ag_news", or a folder.
        transform: makes the training views.
        tokenizer: text to ids; one that is trained is trained on the training text.
        subset: the configuration of the data set, such as "wikitext-103-raw-v1".
        column: that holds the text.
        label: the column of classes that probes are trained on; None: no evaluation by labels.
        test_split: that probes are scored on.
        batch_size: the global batch, over all ranks.
        max_length: places of a view, [CLS] and [SEP] among them; longer text is cut.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that read and tokenize.
        seed: of batches and views; None: the run's.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
    """

    def __init__(
        self,
        name: str,
        transform: TextViews,
        tokenizer: TextTokenizer,
        subset: str | None = None,
        column: str = "text",
        label: str | None = None,
        test_split: str = "test",
        batch_size: int = 256,
        max_length: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            transform,
            tokenizer,
            batch_size,
            max_length,
            eval_batch_size,
            num_workers,
            seed,
            predict_on,
            drop_last,
        )
        self.name, self.subset, self.column = name, subset, column
        self.label, self.test_split = label, test_split

    def prepare_data(self) -> None:
        """Download on one rank."""
        self._load("train")

    def read(self) -> TextSets:
        """Rows are read when they are asked for."""
        train = self._text(self._load("train"))
        if self.label is None:
            return TextSets(train)
        query = self._text(self._load(self.test_split))
        assert train.label is not None
        return TextSets(train, query, num_classes=int(train.label.max()) + 1)

    def _text(self, rows: Any) -> Text:
        label = None if self.label is None else torch.tensor(list(rows[self.label]))
        lines: Lines = _Rows(rows, self.column)
        return Text(lines, label)

    def _load(self, split: str) -> Any:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise ValueError(
                "HFText needs the package datasets, which is not installed; run: "
                "pip install datasets"
            ) from error
        return load_dataset(self.name, self.subset, split=split)


class _Rows:
    """A column of a `datasets.Dataset` as lines."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Any) -> list[str]:
        return list(self.rows[list(rows)][self.column])
