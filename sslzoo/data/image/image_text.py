"""Pairs of images and texts: folders of images with .txt files, and tables of paths and captions.

A training batch has two views: the image, and one of its captions as `Tokens`, drawn anew each
epoch if there are several. Shapes: B samples, S captions of the one that has most, L tokens.
"""

from __future__ import annotations

import copy
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from sslzoo.batch import Batch, Tokens, length_mask
from sslzoo.checks import check_at_least, check_choice
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.file_list import SEPARATORS, column, in_order, read_table, say_splits
from sslzoo.data.image.image_set import Crops, ImageSet
from sslzoo.data.image.load import ANY_EXTENSIONS, Decode, load_images
from sslzoo.data.listing import Listing, check_folder, find_files, say_left_out, spread
from sslzoo.data.sampler import KeyedSampler
from sslzoo.data.text.tokenizer import TextTokenizer, check_tokenizer, check_tower, tokenizer_state
from sslzoo.eval.fingerprint import text_digest
from sslzoo.random import sample_keys
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding
from sslzoo.transforms.image.views import Views
from sslzoo.transforms.text.special import with_special

if TYPE_CHECKING:
    from typing_extensions import Self

Unpaired = Literal["error", "skip"]
_LOOKED_AT = 65_536  # texts whose length is counted before training
_CHECKED_FILES = 1024  # images of a table whose existence is checked before training
_HALF = re.compile("[\ud800-\udfff]")  # of a character of two in UTF-16


class Captions:
    """The captions of N samples, packed in three arrays.

    Args:
        texts: one or several per sample.
    """

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        encoded = [text.encode() for sample in texts for text in sample]
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._end = np.cumsum([0, *map(len, encoded)])
        self._first = np.cumsum([0, *map(len, texts)])

    def __len__(self) -> int:
        return len(self._first) - 1

    @property
    def num_texts(self) -> int:
        """Captions of all samples."""
        return len(self._end) - 1

    def of(self, sample: int) -> list[str]:
        return [self.text(i) for i in range(self._first[sample], self._first[sample + 1])]

    def text(self, number: int) -> str:
        """The text of this number, counted over all samples."""
        return self._text[self._end[number] : self._end[number + 1]].tobytes().decode()

    def walk(self) -> list[str]:
        return [self.text(number) for number in range(self.num_texts)]

    def take(self, rows: Tensor) -> Captions:
        """Those of the samples at `rows`, (M,) int64."""
        return Captions([self.of(row) for row in rows.tolist()])


class PairSet(ImageSet):
    """Images with their captions, which are the last view of a batch.

    Args:
        images: the images.
        encode: texts -> `Tokens` without special tokens.
        draw: seed and shared epoch of the caption that is drawn; None: all captions, (B, S, L).
    """

    def __init__(
        self,
        images: ImageSet,
        encode: Callable[[Sequence[str]], Tokens],
        draw: tuple[int, Tensor] | None = None,
    ) -> None:
        self.images, self.encode, self.draw = images, encode, draw
        self.labels, self.left_out = images.labels, images.left_out
        self.needs_crops, self.channels = images.needs_crops, images.channels

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_broken(self) -> int:
        return self.images.num_broken

    def side(self, wanted: int | None) -> int | None:
        return self.images.side(wanted)

    def again(self, images: ImageSet, draw: tuple[int, Tensor] | None = None) -> Self:
        """The same captions with other images, or with another draw."""
        other = copy.copy(self)
        PairSet.__init__(other, images, self.encode, draw or self.draw)
        return other

    def subset(self, rows: Tensor) -> Self:
        return self.again(self.images.subset(rows))

    def cropped(self, crops: Crops, keep_size: bool) -> Self:
        return self.again(self.images.cropped(crops, keep_size))

    def drawn(self, seed: int, epoch: Tensor) -> Self:
        """The same pairs with one caption per image, keyed by seed, epoch and index."""
        return self.again(self.images, (seed, epoch))

    @abstractmethod
    def walk(self) -> Iterable[str]:
        """Every caption, for the training of a tokenizer."""

    @abstractmethod
    def some(self, number: int) -> list[str]:
        """At most so many captions, evenly spaced."""

    def with_texts(self, batch: Batch, texts: list[list[str]]) -> Batch:
        """A batch of images with the captions of its samples as the last view.

        Args:
            batch: B images.
            texts: the captions of each.
        """
        if self.draw is None:
            counts = torch.tensor([len(each) for each in texts])
            given = length_mask(counts, int(counts.max()))  # (B, S)
            flat = self.encode([text for each in texts for text in each])
            tokens = Tokens(*(part.new_zeros(*given.shape, *part.shape[1:]) for part in flat))
            for part, values in zip(tokens, flat, strict=True):
                part[given] = values
        else:
            seed, epoch = self.draw
            u = sample_keys(seed, int(epoch), batch.index).unit("caption").tolist()
            chosen = [each[int(x * len(each))] for each, x in zip(texts, u, strict=True)]
            tokens = self.encode(chosen)
        return batch._replace(views=[*batch.views, tokens])


class Pairs(NamedTuple):
    """Listed images with their captions.

    Attributes:
        images: the files, and their classes if there are any.
        captions: of each file.
    """

    images: Listing
    captions: Captions


class PairedImages(PairSet):
    """Images with captions in memory; for the arguments see `PairSet`.

    Args:
        captions: of each image.
    """

    def __init__(
        self,
        images: ImageSet,
        captions: Captions,
        encode: Callable[[Sequence[str]], Tokens],
    ) -> None:
        super().__init__(images, encode)
        self.captions = captions

    def fingerprint(self) -> str | None:
        own = self.images.fingerprint()
        return None if own is None else text_digest([own, *self.captions.walk()])

    def subset(self, rows: Tensor) -> Self:
        other = super().subset(rows)
        other.captions = self.captions.take(rows)
        return other

    def walk(self) -> list[str]:
        return self.captions.walk()

    def some(self, number: int) -> list[str]:
        return [self.captions.text(row) for row in spread(self.captions.num_texts, number)]

    def __getitems__(self, index: list[int]) -> Batch:
        batch = self.images.__getitems__(index)
        texts = [self.captions.of(i) for i in batch.index.tolist()]
        return self.with_texts(batch, texts)


class ImageTextDataModule(ImageDataModule):
    """Base class of data modules of images with texts; subclasses implement `read`.

    For the other arguments see `ImageFolder`.

    Args:
        transform: makes the image's view, such as `transforms.clip_views`.
        tokenizer: text to ids; a `WordPiece` without a file is trained on the training captions.
        max_length: tokens of a text, including those of start and end; longer texts are cut, and
            counted before training.
        unpaired: "error" for an image without a text, a text without an image or an empty text;
            "skip" leaves them out and says how many.
    """

    def __init__(
        self,
        transform: Views,
        tokenizer: TextTokenizer,
        batch_size: int,
        max_length: int,
        unpaired: Unpaired,
        decode: Decode,
        on_broken: OnBroken,
        eval_view: EvalView | None,
        eval_batch_size: int,
        num_workers: int | None,
        seed: int | None,
        predict_on: PredictOn,
        drop_last: bool,
    ) -> None:
        check_at_least("batch_size", batch_size, 2)  # else there is nothing to tell a pair from
        check_at_least("max_length", max_length, 3)
        check_choice("unpaired", unpaired, get_args(Unpaired))
        check_choice("decode", decode, get_args(Decode))
        check_choice("on_broken", on_broken, get_args(OnBroken))
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(1.0, predict_on, drop_last),
        )
        self.tokenizer, self.max_length = tokenizer, max_length
        self.unpaired: Unpaired = unpaired
        self.on_broken: OnBroken = on_broken
        # An array would leave unreadable images out, and no longer fit the captions.
        self.decode: Decode = "workers" if on_broken == "skip" else decode
        self.classes: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Read the pairs and prepare the tokenizer, once; check both towers against it."""
        first = self._sets is None
        super().setup(stage)
        if first:
            if len(self.transform.views) != 1:
                raise ValueError(
                    "transform must make one view of the image beside the text, got "
                    f"{len(self.transform.views)}; use sslzoo.transforms.clip_views"
                )
            train, query = self.sets.train, self.sets.query
            self.tokenizer.prepare(train.walk())
            self.check_texts(train.some(_LOOKED_AT), "training")
            if query is not None:
                self.check_texts(query.some(_LOOKED_AT), "validation")
        self._check_tower()

    def check_texts(self, texts: Sequence[str], which: str) -> None:
        """Count the texts that are cut, and those without tokens.

        Args:
            texts: the texts.
            which: what they are of, for the messages, such as "training".

        Raises:
            ValueError: all are without tokens.
        """
        ids = self.tokenizer.encode(texts)
        empty = [text for text, each in zip(texts, ids, strict=True) if not each]
        if empty:
            told = (
                f"{len(empty)} of {len(texts)} {which} texts have no token in the tokenizer's "
                f"vocabulary, such as {empty[0]!r}"
            )
            if len(empty) == len(texts):
                raise ValueError(f"texts must have tokens, but {told}")
            rank_zero_warn(
                f"{told}; they train as empty texts and count as missing in retrieval, which "
                "leaves images without another out"
            )
        long = sum(len(each) > self.tokenizer.room(self.max_length) for each in ids)
        if long:
            rank_zero_warn(
                f"{long} of {len(texts)} {which} texts are longer than {self.max_length} tokens "
                "(max_length), and cut"
            )

    def _check_tower(self) -> None:
        module = None if self.trainer is None else self.trainer.lightning_module
        check_tower(module, "text_backbone", self.tokenizer.num_ids, self.max_length)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Texts as ids without special tokens, cut so that these still fit. (B, L)."""
        return self.tokenizer.cut(texts, self.max_length)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Texts as a text tower takes them, with the tokens of start and end. (B, L)."""
        return self.tokenizer.tokens(texts, self.max_length)

    def train_source(self, sampler: KeyedSampler) -> ImageSet:
        images = super().train_source(sampler)
        assert isinstance(images, PairSet)
        return images.drawn(self.seed, sampler.shared_epoch)

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        *images, text = batch.views
        made = super().train_views(batch._replace(views=images), epoch)
        return made._replace(views=[*made.views, with_special(text, self.tokenizer.special)])

    def eval_views(self, batch: Batch) -> Batch:
        """The image, and all its captions as ids (B, S, L); a missing one has length 0."""
        *images, text = batch.views
        made = super().eval_views(batch._replace(views=images))
        count = text.ids.shape[1]
        flat = Tokens(*(part.flatten(0, 1) for part in text))
        framed = with_special(flat, self.tokenizer.special)
        flat = framed._replace(lengths=framed.lengths * (flat.lengths > 0))
        return made._replace(
            views=[*made.views, Tokens(*(part.unflatten(0, (-1, count)) for part in flat))]
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **tokenizer_state(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        check_tokenizer(self.tokenizer, state_dict)


class ImageTextFiles(ImageTextDataModule):
    """Base class of data modules of image files with texts; subclasses implement `list_pairs`."""

    @abstractmethod
    def list_pairs(self) -> tuple[Pairs, Pairs | None]:
        """The training and the validation pairs.

        Raises:
            ValueError: a file is missing, or an image or a text is alone.
        """

    def read(self) -> ImageSets:
        train, query = self.list_pairs()
        self.classes = list(train.images.classes)
        val = None if query is None else query.images
        sets = load_images(train.images, val, self.decode, self.on_broken, Decoding(3))
        paired = PairedImages(sets.train, train.captions, self.encode)
        if query is None or sets.query is None:
            return sets._replace(train=paired)
        return sets._replace(
            train=paired, query=PairedImages(sets.query, query.captions, self.encode)
        )


class ImageTextFolder(ImageTextFiles):
    """Images beside text files of the same name: `<root>/train/**/NAME.jpg` and `NAME.txt`.

    Each line of a text file is a caption. Without the folder `train_dir`, `root` itself is the
    training set. For the other arguments see `ImageTextDataModule` and `ImageFolder`.

    Args:
        root: the folder.
        train_dir: training folder inside `root`.
        val_dir: validation folder inside `root`; None, or without `train_dir` if it is missing: no
            validation.
        labels: whether the folders inside are classes.
    """

    def __init__(
        self,
        root: str,
        transform: Views,
        tokenizer: TextTokenizer,
        batch_size: int = 256,
        max_length: int = 77,
        train_dir: str = "train",
        val_dir: str | None = "val",
        labels: bool = False,
        unpaired: Unpaired = "error",
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            *(transform, tokenizer, batch_size, max_length, unpaired, decode, on_broken),
            *(eval_view, eval_batch_size, num_workers, seed, predict_on, drop_last),
        )
        self.root, self.train_dir, self.val_dir, self.labels = root, train_dir, val_dir, labels

    def list_pairs(self) -> tuple[Pairs, Pairs | None]:
        root = check_folder(self.root, "root")
        inner = root / self.train_dir
        if not inner.is_dir():
            return self._pairs(root), None
        if self.val_dir is None:
            return self._pairs(inner), None
        val = check_folder(root / self.val_dir, "the validation folder (val_dir)")
        train = self._pairs(inner)
        return train, self._pairs(val, train.images.classes)

    def _pairs(self, folder: Path, classes: Sequence[str] = ()) -> Pairs:
        of_images, of_texts = find_files(folder, ANY_EXTENSIONS), find_files(folder, (".txt",))
        others = sorted(set(of_images.left_out) & set(of_texts.left_out))
        say_left_out(others, (".txt", *ANY_EXTENSIONS))
        images: dict[str, str] = {}
        for path in of_images.paths:
            first = images.setdefault(os.path.splitext(path)[0], path)
            if first != path:
                raise ValueError(
                    "images must have different names, so that each has a text of its own, got "
                    f"{first} and {os.path.basename(path)}"
                )
        texts = {path[: -len(".txt")]: path for path in of_texts.paths}
        found: dict[str, list[str]] = {}
        for stem in images.keys() & texts.keys():
            try:
                text = Path(texts[stem]).read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"texts must be UTF-8, got {texts[stem]}: {error}") from None
            except OSError as error:
                raise ValueError(f"texts must be readable files, got {error}") from None
            found[stem] = caption_lines(text, texts[stem])
        alone = {
            "images without a .txt file": sorted(images[s] for s in images.keys() - texts.keys()),
            "texts without an image": sorted(texts[s] for s in texts.keys() - images.keys()),
            "empty texts": sorted(texts[s] for s, lines in found.items() if not lines),
        }
        say_alone(alone, self.unpaired)
        stems = sorted(stem for stem, lines in found.items() if lines)
        names = [os.path.relpath(s, folder).split(os.sep) for s in stems] if self.labels else []
        return _listed(
            [images[s] for s in stems],
            [found[s] for s in stems],
            [name[0] if len(name) > 1 else "" for name in names],
            classes,
            str(folder),
        )


class ImageTextList(ImageTextFiles):
    """Rows of a CSV, TSV or Parquet table: the path of an image, and its caption.

    Rows with the same path are captions of one image, as are the texts of a list in a field of
    Parquet. Classes that are numbers are in their order. The fields of a .csv may be quoted, those
    of a .tsv are taken as they are. For the other arguments see `ImageTextDataModule` and
    `ImageList`.

    Args:
        file: the table: .csv, .tsv or .parquet (which needs pyarrow).
        root: folder of relative paths; None: that of the table.
        path_column: the column of paths.
        text_column: the column of captions.
        label_column: the column of classes; None: no labels.
        split_column: the column of splits; None: all rows are for training. A table without it has
            one split if it is "split".
        train_split: name of the training rows.
        val_split: name of the validation rows; None: no validation.
    """

    def __init__(
        self,
        file: str,
        transform: Views,
        tokenizer: TextTokenizer,
        batch_size: int = 256,
        max_length: int = 77,
        root: str | None = None,
        path_column: str = "path",
        text_column: str = "caption",
        label_column: str | None = None,
        split_column: str | None = "split",
        train_split: str = "train",
        val_split: str | None = "val",
        unpaired: Unpaired = "error",
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            *(transform, tokenizer, batch_size, max_length, unpaired, decode, on_broken),
            *(eval_view, eval_batch_size, num_workers, seed, predict_on, drop_last),
        )
        self.file, self.root = file, root
        self.columns = path_column, text_column, label_column, split_column
        self.splits: tuple[str, str | None] = train_split, val_split

    def list_pairs(self) -> tuple[Pairs, Pairs | None]:
        path_column, text_column, label_column, split_column = self.columns
        path = Path(self.file).expanduser()
        if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".parquet"):
            raise ValueError(
                f"a table must be an existing file of .csv, .tsv, .parquet, got {self.file!r}"
            )
        table = read_table(path, path_column)
        for name in (path_column, text_column):
            if name not in table:
                raise ValueError(
                    f"path_column and text_column must be among the columns {sorted(table)} of "
                    f"{self.file}, got {name!r}; {SEPARATORS}"
                )
        labels = column(table, label_column, "label", self.file)
        if label_column is not None and labels is None:
            raise ValueError(
                f"label_column must be a column of {self.file} with classes, got {label_column!r}"
            )
        splits = column(table, split_column, "split", self.file)
        rows = range(len(table[path_column]))
        if splits is None:
            return self._pairs(table, rows, labels), None
        train, val = self.splits
        parts: dict[str | None, list[int]] = {train: [], val: []}
        for row in rows:
            parts.setdefault(str(splits[row]), []).append(row)
        say_splits({split: len(found) for split, found in parts.items()}, self.splits, self.file)
        for which, split in (("train_split", train), ("val_split", val)):
            if split is not None and not parts[split]:
                known = sorted({str(each) for each in splits})
                raise ValueError(
                    f"{which} must be one of the splits {known} of {self.file}, got {split!r}"
                )
        first = self._pairs(table, parts[train], labels)
        if val is None:
            return first, None
        return first, self._pairs(table, parts[val], labels, first.images.classes)

    def _pairs(
        self,
        table: dict[str, Sequence[Any]],
        rows: Sequence[int],
        labels: Sequence[Any] | None,
        classes: Sequence[str] = (),
    ) -> Pairs:
        path_column, text_column, *_ = self.columns
        folder = Path(self.root or Path(self.file).parent).expanduser()
        spelled: dict[str, str] = {}
        captions: dict[str, list[str]] = {}
        known: dict[str, str] = {}
        alone: dict[str, list[str]] = {"texts without an image": [], "empty texts": []}
        for row in rows:
            name = str(table[path_column][row] or "")
            texts = given_texts(table[text_column][row], f"row {row + 1} of {self.file}")
            if not name.strip():
                alone["texts without an image"].append(f"row {row + 1}")
            elif not texts:
                alone["empty texts"].append(f"row {row + 1}")
            else:
                name = spelled.setdefault(os.path.abspath(folder / name), name)  # as it came first
                captions.setdefault(name, []).extend(texts)
                label = "" if labels is None else str(labels[row])
                if known.setdefault(name, label) != label:
                    raise ValueError(
                        f"the rows of an image must have one label, got {known[name]!r} and "
                        f"{label!r} for {name!r} in {self.file}"
                    )
        say_alone(alone, self.unpaired)
        names = list(captions)
        paths = [os.path.join(folder, name) for name in names]
        seen = spread(len(paths), _CHECKED_FILES)
        missing = [i for i in seen if not os.path.exists(paths[i])]
        if missing and (self.on_broken == "error" or len(missing) == len(seen)):
            raise ValueError(
                f"the paths of a table must be of existing files, got {names[missing[0]]!r} in "
                f"{self.file}; set root to the folder of relative paths"
            )
        given = [] if labels is None else [known[name] for name in names]
        classes = list(classes) or sorted(set(given), key=in_order)
        return _listed(paths, [captions[n] for n in names], given, classes, self.file)


def given_texts(told: Any, where: str) -> list[str]:
    """The captions that a table or shard gives an image, a text or several, without empty ones.

    Raises:
        ValueError: they are no texts.
    """
    texts = told if isinstance(told, list | tuple) else [told]
    wrong = [text for text in texts if not isinstance(text, str | None)]
    if wrong:
        raise ValueError(
            f"a caption must be a text or a list of texts, got {wrong[0]!r} in {where}"
        )
    return [line for text in texts if (line := one_line(text or "", where))]


def one_line(text: str, where: str) -> str:
    """A caption with single spaces.

    Raises:
        ValueError: it has a NUL, as a text of two bytes a letter that was read as UTF-8, or half a
            character, as JSON may.
    """
    if "\0" in text or _HALF.search(text):
        raise ValueError(f"texts must be UTF-8 without NUL, got {text!r:.60} in {where}")
    return " ".join(text.split())


def caption_lines(text: str, where: str) -> list[str]:
    """The captions of a text, one per line that is not empty."""
    lines = (one_line(line, where) for line in re.split(r"\r\n?|\n", text))
    return [line for line in lines if line]


def _listed(
    paths: list[str],
    captions: list[list[str]],
    labels: list[str],
    classes: Sequence[str],
    source: str,
) -> Pairs:
    """Pairs from parallel lists, with classes numbered as in training."""
    if not paths:
        raise ValueError(f"{source} must have images with texts, got none")
    if not labels:
        return Pairs(Listing(paths), Captions(captions))
    names = list(classes) or sorted(set(labels))
    unknown = sorted(set(labels) - set(names))
    if unknown or "" in names:
        raise ValueError(
            f"every image of {source} must have a class, those of training if it is another set, "
            f"got {unknown[:3] or ['none']}"
        )
    number = {name: i for i, name in enumerate(names)}
    return Pairs(
        Listing(paths, torch.tensor([number[label] for label in labels]), names),
        Captions(captions),
    )


def say_alone(alone: dict[str, list[str]], unpaired: Unpaired) -> None:
    """Refuse what has no partner, or say what is left out."""
    found = {kind: which for kind, which in alone.items() if which}
    if not found:
        return
    told = "; ".join(f"{len(which)} {kind}, such as {which[0]}" for kind, which in found.items())
    if unpaired == "error":
        raise ValueError(
            f"every image must have a text, and every text an image, got {told}; set "
            "unpaired='skip' to leave them out"
        )
    rank_zero_info(f"Left out: {told}")
