"""Lines of text, in memory or in a file, and batches of tokenized sentences.

Shapes: N lines, B sentences of a batch, L tokens of its longest sentence.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import mmap
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from sslzoo.batch import Batch, Tokens
from sslzoo.data.listing import check_known, select_rows
from sslzoo.data.text.tokenizer import TextTokenizer
from sslzoo.eval.fingerprint import files_digest, labels_digest, text_digest
from sslzoo.random import run_keys
from sslzoo.text_file import check_text, encoding_of, read_text

_BLOCK = 1 << 26  # bytes of a file that are scanned at a time
_CHECKED = 1 << 26  # bytes whose encoding is checked


class Lines(Protocol):
    """N lines of text, read by number."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[str]:
        """Read the lines with these numbers."""

    def fingerprint(self) -> str | None:
        """Hash of the lines; None if unknown."""


class ListLines:
    """Lines in memory.

    Args:
        lines: the text.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = list(lines)

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, rows: Sequence[int]) -> list[str]:
        return [self.lines[row] for row in rows]

    def fingerprint(self) -> str:
        return text_digest(self.lines)


class FileLines:
    """Lines of a UTF-8 file of any size; memory holds 12 bytes per line.

    Empty lines are skipped and not counted, as is a byte order mark.

    Args:
        path: the file; invalid UTF-8 is refused in the first 64 MiB, and replaced after them.

    Raises:
        ValueError: the file does not exist, has no text, or is not UTF-8.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file() or not self.path.stat().st_size:
            raise ValueError(f"a text file must exist and not be empty, got {str(path)!r}")
        self._mark = self._check_encoding()
        starts, sizes = [], []
        for start, size in self._bounds():
            starts.append(start[size > 0])
            sizes.append(size[size > 0])
        self._starts, self._sizes = np.concatenate(starts), np.concatenate(sizes)
        if not len(self._starts):
            raise ValueError(f"a text file must have a line of text, got none in {str(path)!r}")
        self._map: mmap.mmap | None = None

    def _check_encoding(self) -> int:
        """Bytes of the byte order mark; refuses other encodings and line ends."""
        with self.path.open("rb") as file:
            content = file.read(_CHECKED)
        encoding = encoding_of(content)
        if not encoding.startswith("utf-8"):
            raise ValueError(
                f"a text file must be UTF-8, got {encoding.upper()} by the byte order mark of "
                f"{str(self.path)!r}; convert it: iconv -f {encoding.upper()} -t UTF-8"
            )
        mark = len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0
        whole = len(content) < _CHECKED
        end = len(content) if whole else content.rfind(b"\n") + 1 or _CHECKED - 4
        check_text(self.path, content[mark:end])
        if b"\r" in content and b"\n" not in content:
            raise ValueError(
                f"lines must end in \\n or \\r\\n, got \\r alone in {str(self.path)!r}"
            )
        return mark

    def number(self, row: int) -> int:
        """Number of a line in the file, from 1, with the empty ones."""
        with self.path.open("rb") as file:
            return file.read(int(self._starts[row])).count(b"\n") + 1

    def _bounds(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(starts, sizes) of lines, block by block."""
        content = np.memmap(self.path, np.uint8, "r")
        start = self._mark
        for first in range(0, len(content), _BLOCK):
            block = content[first : first + _BLOCK]
            ends = np.flatnonzero(block == ord("\n")) + first
            if first + _BLOCK >= len(content) and content[-1] != ord("\n"):
                ends = np.append(ends, len(content))
            if not len(ends):
                continue
            starts = np.concatenate([[start], ends[:-1] + 1])
            sizes = ends - starts
            windows = (sizes > 0) & (content[np.maximum(ends - 1, 0)] == ord("\r"))
            yield starts, (sizes - windows).astype(np.int32)
            start = int(ends[-1]) + 1

    def __len__(self) -> int:
        return len(self._starts)

    def _content(self) -> mmap.mmap:
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def read(self, rows: Sequence[int]) -> list[str]:
        content = self._content()
        out = []
        for row in rows:
            start = int(self._starts[row])
            raw = content[start : start + int(self._sizes[row])]
            out.append(raw.decode("utf-8", errors="replace"))
        return out

    def neighbors(self, rows: Sequence[int]) -> list[int]:
        """The next line of each, or else the one before; an empty line separates documents.

        A line alone is its own neighbor.
        """
        out = []
        for row in rows:
            if self._follows(row + 1):
                out.append(row + 1)
            else:
                out.append(row - 1 if self._follows(row) else row)
        return out

    def _follows(self, row: int) -> bool:
        """Whether a line follows another without an empty line between them."""
        if not 0 < row < len(self):
            return False
        end = int(self._starts[row - 1]) + int(self._sizes[row - 1])
        return self._content()[end : int(self._starts[row])].count(b"\n") == 1

    def fingerprint(self) -> str:
        return files_digest([self.path])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a memory map cannot be pickled


class Text(NamedTuple):
    """Lines and their optional labels.

    Args:
        lines: N lines.
        label: (N,) int64 classes, (N,) float scores of pairs, or None.
    """

    lines: Lines
    label: Tensor | None = None

    def fingerprint(self) -> str | None:
        """Hash of lines and labels; None if unknown."""
        lines = self.lines.fingerprint()
        return None if lines is None else lines + labels_digest(self.label)


class Sentences:
    """Text as batches of `Tokens`, without [CLS] and [SEP].

    Args:
        text: the lines.
        tokenizer: a prepared tokenizer.
        max_words: tokens to which a sentence is truncated.
        neighbors: whether the neighboring line (`FileLines.neighbors`) is a second view.
    """

    def __init__(
        self, text: Text, tokenizer: TextTokenizer, max_words: int, neighbors: bool = False
    ) -> None:
        self.text, self.tokenizer, self.max_words = text, tokenizer, max_words
        self.neighbors = neighbors

    def __len__(self) -> int:
        return len(self.text.lines)

    def __getitems__(self, index: list[int]) -> Batch:
        views = [self._tokens(index)]
        if self.neighbors:
            views.append(self._tokens(cast(FileLines, self.text.lines).neighbors(index)))
        rows = torch.tensor(index)
        return Batch(views, rows, select_rows(self.text.label, rows))

    def _tokens(self, index: list[int]) -> Tokens:
        encoded = self.tokenizer.encode(self.text.lines.read(index))
        words = [line[: self.max_words] for line in encoded]
        ids = np.full((len(words), max(1, *map(len, words))), self.tokenizer.special.pad, np.int64)
        for row, line in zip(ids, words, strict=True):
            row[: len(line)] = line
        return Tokens(torch.from_numpy(ids), torch.tensor([len(line) for line in words]))


class LineWindows:
    """Samples of S consecutive lines as `Tokens` of ids (B, S, L), without [CLS] and [SEP].

    Sample i has the lines from S i + o; the offset o < S is keyed by (seed, epoch). A window may
    cross from one document of the file into the next.

    Args:
        sentences: the lines, at least 2 S - 1.
        window: S.
        seed: seed of the offsets.
        epoch: shared int64 scalar that the sampler writes (`KeyedSampler.shared_epoch`).
    """

    def __init__(self, sentences: Sentences, window: int, seed: int, epoch: Tensor) -> None:
        self.sentences, self.window, self.seed, self.epoch = sentences, window, seed, epoch

    def __len__(self) -> int:
        return num_windows(len(self.sentences), self.window)

    def __getitems__(self, index: list[int]) -> Batch:
        drawn = run_keys(self.seed, int(self.epoch)).integers("window", self.window)
        starts = [self.window * i + int(drawn) for i in index]
        rows = [row for start in starts for row in range(start, start + self.window)]
        (view,) = self.sentences.__getitems__(rows).views
        windows = Tokens(*(part.unflatten(0, (-1, self.window)) for part in view))
        return Batch([windows], torch.tensor(index))


def num_windows(lines: int, window: int) -> int:
    """Number of windows of consecutive lines that fit at every offset below `window`."""
    return max(0, (lines - window + 1) // window)


def walk(lines: Lines, block: int = 1024) -> Iterator[str]:
    """Iterate over all lines in order."""
    for start in range(0, len(lines), block):
        yield from lines.read(range(start, min(start + block, len(lines))))


def read_labeled(path: str | Path, classes: list[str] | None = None) -> tuple[Text, list[str]]:
    """Read labeled sentences, one `label<TAB>sentence` per line, into memory.

    Args:
        path: the file.
        classes: the classes of the training set; None: the sorted labels of this file.

    Returns:
        The text, whose labels are positions in the classes, and the classes.

    Raises:
        ValueError: a line has no tab, label or sentence, or a label is not a class.
    """
    labels, lines = [], []
    file = FileLines(path)
    for row, line in enumerate(walk(file)):
        label, _, sentence = line.partition("\t")
        label = unicodedata.normalize("NFC", label.strip())
        if not label or not sentence.strip():
            raise ValueError(
                f"a line of {path} must be label<TAB>sentence, line {file.number(row)} is "
                f"{line[:60]!r}"
            )
        labels.append(label)
        lines.append(sentence)
    classes = sorted(set(labels)) if classes is None else classes
    check_known(labels, classes, str(path))
    position = {name: number for number, name in enumerate(classes)}
    return Text(ListLines(lines), torch.tensor([position[label] for label in labels])), classes


def read_pairs(path: str | Path) -> Text:
    """Read scored pairs from a CSV of (sentence, sentence, score) rows without a header.

    Returns:
        2N lines, with the two lines of a pair adjacent, each with the pair's score.

    Raises:
        ValueError: the file does not exist or is empty, or a row is malformed.
    """
    lines: list[str] = []
    scores: list[float] = []
    if not Path(path).is_file():
        raise ValueError(f"a CSV file of scored pairs must exist, got {str(path)!r}")
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    while True:
        try:
            row = next(reader, None)
            if row is None:
                break
            if not row:
                continue  # a blank line
            first, second, score = row
            if not math.isfinite(float(score)):
                raise ValueError
        except (ValueError, csv.Error) as error:
            got = f": {error}" if isinstance(error, csv.Error) else f" is {row}"
            raise ValueError(
                f"a row of {path} must be (sentence, sentence, score), row {reader.line_num}{got}"
            ) from None
        scores += [float(score)] * 2
        lines += [first, second]
    if not lines:
        raise ValueError(f"a CSV file of scored pairs must have rows, got none in {str(path)!r}")
    return Text(ListLines(lines), torch.tensor(scores))
