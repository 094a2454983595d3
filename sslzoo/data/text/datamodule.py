"""TextDataModule, the base class of text data modules, and those for files and data sets.

The loader gives ids without special tokens. On the device they become the views of `transform` in
training, and the sentence between [CLS] and [SEP] otherwise.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sslzoo.batch import Batch
from sslzoo.checks import check_at_least
from sslzoo.data.datamodule import PredictOn, SampleDataModule
from sslzoo.data.inputs import TextInput, as_config
from sslzoo.data.loader import BatchSource
from sslzoo.data.sampler import KeyedSampler
from sslzoo.data.text.lines import (
    FileLines,
    Lines,
    LineWindows,
    ListLines,
    Sentences,
    Text,
    num_windows,
    read_labeled,
    read_pairs,
    walk,
)
from sslzoo.data.text.tokenizer import (
    TextTokenizer,
    WordPiece,
    check_tokenizer,
    check_tower,
    tokenizer_state,
)
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.random import sample_keys
from sslzoo.transforms.text.special import with_special
from sslzoo.transforms.text.views import TextViews


class TextSets(NamedTuple):
    """The training and evaluation sets of a text data module.

    Attributes:
        train: the training set.
        query: labeled sentences that evaluation scores, or None.
        bank: labeled sentences for probe training; None: `train`.
        num_classes: number of classes, or None without labels.
        pairs: scored pairs by name, such as "dev": 2N lines each, see `read_pairs`.
    """

    train: Text
    query: Text | None = None
    bank: Text | None = None
    num_classes: int | None = None
    pairs: dict[str, Text] = {}  # noqa: RUF012 (never changed)


class TextDataModule(SampleDataModule):
    """Base class of text data modules; subclasses implement `read`.

    Args:
        transform: makes the training views.
        tokenizer: text to ids; a `WordPiece` without a file is trained on the training text.
        batch_size: size of the global batch, over all ranks.
        max_length: tokens of a view, including [CLS] and [SEP]; longer text is truncated.
        eval_batch_size: batch size in evaluation.
        num_workers: processes that read and tokenize; 0: the main process.
        seed: seed of batches and views; None: the run's seed.
        predict_on: the set that `predict` runs on.
        drop_last: drop the last batch of an epoch if it is incomplete.
        window: consecutive lines of a training sample, for CPC, which predicts the later ones from
            the earlier ones; 1: single lines. `batch_size` then counts windows.
    """

    noun = "sentences"

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
        window: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, 1.0, predict_on, drop_last)
        check_at_least("max_length", max_length, 3)
        check_at_least("window", window, 1)
        self.transform, self.tokenizer = transform, tokenizer
        self.max_length, self.window = max_length, window

    @abstractmethod
    def read(self) -> TextSets:
        """Read the sets; called once, by `setup`.

        Raises:
            ValueError: a file is missing or malformed.
        """

    @property
    def num_samples(self) -> int:
        """Size of the training set: lines, or windows of them."""
        return num_windows(len(self.sets.train.lines), self.window)

    @property
    def num_broken(self) -> int:
        """Always 0: no sentence is skipped."""
        return 0

    def setup(self, stage: str | None = None) -> None:
        """Read the sets and prepare the tokenizer, once; check the vocabulary."""
        first = self._sets is None
        super().setup("validate")
        lines, least = len(self.sets.train.lines), 2 * self.window - 1
        if stage in ("fit", None) and lines < least:
            raise ValueError(
                f"the training text must have at least {least} lines (2 window - 1), got {lines}"
            )
        super().setup(stage)
        if first:
            self.tokenizer.prepare(walk(self.sets.train.lines))
            if self.tokenizer.special.cls < 0:
                raise ValueError(
                    "tokenizer must have a token of the start ([CLS]) for methods of text, got one "
                    "without; take another, such as that of BERT or RoBERTa"
                )
            self.transform.prepare(self.tokenizer)
        self._check_tower()

    def train_source(self, sampler: KeyedSampler) -> BatchSource:
        lines = self.eval_source(self.sets.train)
        if self.window == 1:
            return lines
        return LineWindows(lines, self.window, self.seed, sampler.shared_epoch)

    def eval_source(self, samples: Text) -> Sentences:
        return Sentences(samples, self.tokenizer, self.max_length - 2)

    def workers(self, samples: Text) -> int:
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Also store the tokenizer's digest, and its JSON if it may have been trained here."""
        return {**super().state_dict(), **tokenizer_state(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        check_tokenizer(self.tokenizer, state_dict)

    def encoder_input(self) -> TextInput:
        self.setup("validate")  # the tokenizer may be trained on the text
        return TextInput(self.tokenizer, self.max_length)

    def preprocessing(self) -> dict[str, Any] | None:
        about = {"kind": "text", "max_length": self.max_length}
        if isinstance(self.tokenizer, WordPiece):
            return about
        tokenizer = as_config(self.tokenizer)
        return None if tokenizer is None else {**about, "tokenizer": tokenizer}

    def take_input(self, given: Any) -> None:
        """Use another encoder's tokenizer and maximum length."""
        self.tokenizer, self.max_length = given.tokenizer, given.max_length

    def eval_sets(self) -> dict[str, Any]:
        pairs = {f"pairs {name}": text for name, text in self.sets.pairs.items()}
        return {**super().eval_sets(), **pairs}

    def similarity_dataloaders(self) -> dict[str, EvalLoaders]:
        """Scored pairs by name: rows 2i and 2i + 1 are a pair, labels its score."""
        return {
            name: EvalLoaders(self.eval_loader(text), None, self.eval_views, None, sharded=True)
            for name, text in self.sets.pairs.items()
        }

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        keys = sample_keys(self.seed, epoch, batch.index)
        text, *neighbor = batch.views
        return batch._replace(views=self.transform(text, keys, self.tokenizer.special, *neighbor))

    def has_pairs(self) -> bool:
        """Whether there are two views, at least one of them augmented."""
        return len(self.transform.views) > 1 and any(self.transform.views[:2])

    def eval_views(self, batch: Batch) -> Batch:
        return batch._replace(views=[with_special(batch.views[0], self.tokenizer.special)])

    def _check_tower(self) -> None:
        """Check the tokenizer and the lengths against the model."""
        module = None if self.trainer is None else self.trainer.lightning_module
        check_tower(module, "backbone", self.tokenizer.num_ids, self.max_length)
        mask_id = getattr(module, "mask_id", None)
        if mask_id is not None and mask_id != self.tokenizer.special.mask:
            raise ValueError(
                f"mask_id must be {self.tokenizer.special.mask} (the tokenizer's [MASK]), got "
                f"{mask_id}"
            )


class TextLines(TextDataModule):
    """A file with one sentence per line, with optional labeled sentences and pairs.

    For the other arguments see `TextDataModule`.

    Args:
        root: the training text file.
        labeled_train: file of `label<TAB>sentence` lines for probe training.
        labeled_test: file of `label<TAB>sentence` lines that evaluation scores.
        pairs: CSV files of (sentence, sentence, score) rows, by the name of their metric.
        neighbors: whether the second training view is of the neighboring line, the next one of the
            document or else the one before, instead of the line itself; an empty line separates
            documents.
    """

    def __init__(
        self,
        root: str,
        transform: TextViews,
        tokenizer: TextTokenizer,
        batch_size: int = 256,
        max_length: int = 64,
        labeled_train: str | None = None,
        labeled_test: str | None = None,
        pairs: dict[str, str] | None = None,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        neighbors: bool = False,
        window: int = 1,
    ) -> None:
        super().__init__(
            *(transform, tokenizer, batch_size, max_length, eval_batch_size, num_workers),
            *(seed, predict_on, drop_last, window),
        )
        if neighbors and window > 1:
            raise ValueError(f"window must be 1 with neighbors, got {window}")
        if neighbors and len(transform.views) < 2:
            raise ValueError(
                "transform must have at least two views for neighbors, got "
                f"{len(transform.views)}; use plain_text(2) or clear_views"
            )
        if (labeled_train is None) != (labeled_test is None):
            raise ValueError(
                "labeled_train and labeled_test must be given together, got "
                f"{labeled_train!r} and {labeled_test!r}"
            )
        self.root, self.pairs = root, pairs or {}
        self.labeled_train, self.labeled_test = labeled_train, labeled_test
        self.neighbors = neighbors

    def train_source(self, sampler: KeyedSampler) -> BatchSource:
        if not self.neighbors:
            return super().train_source(sampler)
        return Sentences(self.sets.train, self.tokenizer, self.max_length - 2, neighbors=True)

    def has_pairs(self) -> bool:
        return self.neighbors or super().has_pairs()

    def read(self) -> TextSets:
        """Index the lines of the file; read labeled sentences and pairs into memory."""
        sets = TextSets(
            Text(FileLines(self.root)),
            pairs={name: read_pairs(path) for name, path in self.pairs.items()},
        )
        if self.labeled_train is None or self.labeled_test is None:
            return sets
        bank, classes = read_labeled(self.labeled_train)
        query, _ = read_labeled(self.labeled_test, classes)
        return sets._replace(bank=bank, query=query, num_classes=len(classes))


class STSB(TextDataModule):
    """STS-B: the training set is the sentences of its training pairs, without scores.

    Cer et al., SemEval 2017, https://arxiv.org/abs/1708.00055: 5,749 pairs for training (10,536
    distinct sentences), 1,500 "dev" and 1,379 "test" pairs with scores from 0 to 5.

    For the other arguments see `TextDataModule`.

    Args:
        root: the folder with train.csv, dev.csv and test.csv of (sentence, sentence, score) rows,
            or the parent of such a folder `stsb`.
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
            *(transform, tokenizer, batch_size, max_length, eval_batch_size, num_workers),
            *(seed, "train", drop_last),
        )
        self.root = root

    def read(self) -> TextSets:
        """Read all three parts into memory."""
        folder = Path(self.root).expanduser()
        inner = folder / "stsb"
        folder = inner if inner.is_dir() else folder
        train, dev, test = (read_pairs(folder / f"{part}.csv") for part in ("train", "dev", "test"))
        distinct = dict.fromkeys(walk(train.lines))  # ordered by first appearance
        return TextSets(Text(ListLines(list(distinct))), pairs={"dev": dev, "test": test})


class HFText(TextDataModule):
    """The text of a Hugging Face data set by name, with optional labels for evaluation.

    For the other arguments see `TextDataModule`.

    Args:
        name: a name such as "wikitext" or "ag_news", or a folder.
        subset: configuration of the data set, such as "wikitext-103-raw-v1".
        column: column with the text.
        label: column with the classes; None: no evaluation with labels.
        test_split: split that evaluation scores.
        local_files_only: refuse a name that would be downloaded. It is set when the config of a run
            directory is read without `trust`.
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
        local_files_only: bool = False,
        window: int = 1,
    ) -> None:
        super().__init__(
            *(transform, tokenizer, batch_size, max_length, eval_batch_size, num_workers),
            *(seed, predict_on, drop_last, window),
        )
        self.name, self.subset, self.column = name, subset, column
        self.label, self.test_split = label, test_split
        self.local_files_only = local_files_only

    def prepare_data(self) -> None:
        """Download the data set."""
        self._load("train")

    def read(self) -> TextSets:
        """Open the splits; rows are read on demand."""
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
        if self.local_files_only and not Path(str(self.name)).is_dir():
            raise ValueError(
                f"the data set {self.name!r} of a run's config must be a folder, since nothing is "
                "downloaded for a file; if you trust the run, say so: --trust"
            )
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

    def fingerprint(self) -> None:
        """Unknown: the package has no public hash of a data set."""
