"""Lines of text, and the sets of sentences that they make.

N lines; B of them make a batch, padded to the longest of it (L).
"""

from __future__ import annotations

import csv
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sslzoo.batch import Batch, Tokens
from sslzoo.data.text.tokenizer import TextTokenizer
from sslzoo.eval.fingerprint import files_digest, labels_digest, text_digest

_BLOCK = 1 << 26  # bytes of a file that are looked through at a time


class Lines(Protocol):
    """N lines of text by number."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[str]:
        """The text of these lines."""

    def fingerprint(self) -> str | None:
        """Changes where the lines do; None: it cannot be told."""


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
    """Lines of a UTF-8 file of any size: only where each begins and ends is in memory (12 bytes).

    Empty lines are left out and not counted.

    Args:
        path: of the file; bytes that are not UTF-8 are replaced.

    Raises:
        ValueError: there is no such file, or no text in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file() or not self.path.stat().st_size:
            raise ValueError(f"a text file wanted, got {str(path)!r}: nothing or an empty file")
        starts, sizes = [], []
        for start, size in self._bounds():
            starts.append(start[size > 0])
            sizes.append(size[size > 0])
        self._starts, self._sizes = np.concatenate(starts), np.concatenate(sizes)
        if not len(self._starts):
            raise ValueError(f"a text file wanted, got {str(path)!r}: it has only empty lines")
        self._map: mmap.mmap | None = None

    def _bounds(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(starts, sizes) of lines, block by block."""
        content = np.memmap(self.path, np.uint8, "r")
        start = 0
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

    def read(self, rows: Sequence[int]) -> list[str]:
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        out = []
        for row in rows:
            start = int(self._starts[row])
            raw = self._map[start : start + int(self._sizes[row])]
            out.append(raw.decode("utf-8", errors="replace"))
        return out

    def fingerprint(self) -> str:
        return files_digest([self.path])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a spawned worker maps the file itself


class Text(NamedTuple):
    """Lines and, perhaps, what is known of each.

    Args:
        lines: N.
        label: (N,) int64 classes, or float scores of pairs; None without.
    """

    lines: Lines
    label: Tensor | None = None

    def fingerprint(self) -> str | None:
        """Changes where lines or labels do; None: it cannot be told."""
        lines = self.lines.fingerprint()
        return None if lines is None else lines + labels_digest(self.label)


class Sentences:
    """Text as batches of `Tokens`, without [CLS] and [SEP].

    Args:
        text: the lines.
        tokenizer: prepared.
        max_words: what is longer is cut.
    """

    def __init__(self, text: Text, tokenizer: TextTokenizer, max_words: int) -> None:
        self.text, self.tokenizer, self.max_words = text, tokenizer, max_words

    def __len__(self) -> int:
        return len(self.text.lines)

    def __getitems__(self, index: list[int]) -> Batch:
        encoded = self.tokenizer.encode(self.text.lines.read(index))
        rows = [row[: self.max_words] for row in encoded]
        ids = np.full((len(rows), max(1, *map(len, rows))), self.tokenizer.special.pad, np.int64)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = row
        tokens = Tokens(torch.from_numpy(ids), torch.tensor([len(row) for row in rows]))
        places = torch.tensor(index)
        label = None if self.text.label is None else self.text.label[places]
        return Batch([tokens], places, label)


def walk(lines: Lines, block: int = 1024) -> Iterator[str]:
    """All lines in order."""
    for start in range(0, len(lines), block):
        yield from lines.read(range(start, min(start + block, len(lines))))


def read_labeled(path: str | Path, classes: list[str] | None = None) -> tuple[Text, list[str]]:
    """Labeled sentences, `label<TAB>sentence` on each line, read into memory.

    Args:
        path: of the file.
        classes: those of the training set; None: the labels found, sorted.

    Returns:
        The text, with the positions of its labels in the classes, and the classes.

    Raises:
        ValueError: a line without a tab, or a label that the classes lack.
    """
    labels, lines = [], []
    for number, line in enumerate(walk(FileLines(path)), 1):
        label, tab, sentence = line.partition("\t")
        if not tab:
            raise ValueError(f"{path}: label<TAB>sentence wanted, line {number} is {line[:60]!r}")
        labels.append(label)
        lines.append(sentence)
    classes = sorted(set(labels)) if classes is None else classes
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise ValueError(f"{path} has labels that training lacks: {unknown[:5]}")
    place = {name: number for number, name in enumerate(classes)}
    return Text(ListLines(lines), torch.tensor([place[label] for label in labels])), classes


def read_pairs(path: str | Path) -> Text:
    """Scored pairs from a CSV of (sentence, sentence, score) rows, without a header.

    Returns:
        2N lines, those of a pair one after the other, each with the pair's score.

    Raises:
        ValueError: there is no such file, or a row is something else.
    """
    lines: list[str] = []
    scores: list[float] = []
    if not Path(path).is_file():
        raise ValueError(f"a CSV file of scored pairs wanted, got {str(path)!r}: there is none")
    with Path(path).open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), 1):
            try:
                first, second, score = row
                scores += [float(score)] * 2
            except ValueError:
                raise ValueError(
                    f"{path}: (sentence, sentence, score) wanted, row {number} is {row}"
                ) from None
            lines += [first, second]
    return Text(ListLines(lines), torch.tensor(scores))
