"""Sources of similar tokens for `Substitution`: a table of words, or word embeddings.

Shapes: V tokens, at most K neighbors per token, D width of the embeddings.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_at_least
from sslzoo.text_file import read_text
from sslzoo.transforms.text.augmentations import Neighbors, Tokenizer

_ROWS = 1024  # rows of the similarity matrix at a time


class TableFile:
    """Neighbors from a file: a word and its replacements per line, separated by whitespace.

    Words that are not a single token are skipped. CLEAR reports the similar words of Jia et al.,
    2019; such a list can be given in this form.

    Args:
        path: UTF-8 file, in the tokenizer's case.

    Raises:
        ValueError: in `read`, if the file does not exist or has no neighbors in the vocabulary.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, tokenizer: Tokenizer) -> Neighbors:
        if not Path(self.path).is_file():
            raise ValueError(f"path must be a file of neighbors, got {self.path!r}")
        found: dict[int, dict[int, None]] = {}  # an ordered set per word
        for line in read_text(self.path).splitlines():
            ids = [tokenizer.id_of(word) for word in line.split()]
            if ids and ids[0] is not None:
                others = [i for i in ids[1:] if i is not None and i != ids[0]]
                found.setdefault(ids[0], {}).update(dict.fromkeys(others))
        most = max(map(len, found.values()), default=0)
        if not most:
            raise ValueError(
                f"{self.path!r} must have a word with a neighbor in the vocabulary, got none"
            )
        table = torch.zeros(tokenizer.num_ids, most, dtype=torch.int64)
        counts = torch.zeros(tokenizer.num_ids, dtype=torch.int64)
        for word, near in found.items():
            table[word, : len(near)] = torch.tensor(list(near), dtype=torch.int64)
            counts[word] = len(near)
        return Neighbors(table, counts)


class NearestEmbeddings:
    """The K nearest neighbors by cosine of word vectors in GloVe's or word2vec's text format.

    Each line has a word and its D numbers; word2vec's first line, of two numbers, is skipped.
    Words that are not a single token are skipped; tokens without a vector are never replaced.

    Args:
        path: the file.
        k: K.

    Raises:
        ValueError: in `read`, if the file does not exist, a line has another number of columns, or
            fewer than two words are tokens.
    """

    def __init__(self, path: str, k: int = 10) -> None:
        self.path, self.k = path, k

    def read(self, tokenizer: Tokenizer) -> Neighbors:
        if not Path(self.path).is_file():
            raise ValueError(f"path must be a file of word vectors, got {self.path!r}")
        vectors: dict[int, Tensor] = {}
        width = 0
        with Path(self.path).open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                width = width or len(values)
                if len(values) != width:
                    raise ValueError(
                        f"a word of {self.path} must have {width} numbers, line {number} has "
                        f"{len(values)}"
                    )
                token = tokenizer.id_of(word)
                if token is not None:
                    vectors[token] = _vector(values, number, self.path)
        if len(vectors) < 2:
            raise ValueError(
                f"{self.path!r} must have at least 2 words of the vocabulary, got {len(vectors)}"
            )
        tokens = torch.tensor(sorted(vectors))
        return nearest(torch.stack([vectors[int(i)] for i in tokens]), tokens, tokenizer.num_ids,
                       self.k)  # fmt: skip


def _vector(values: list[str], number: int, path: str) -> Tensor:
    try:
        vector = torch.tensor([float(value) for value in values])
    except ValueError:
        vector = torch.tensor([math.nan])
    if not bool(vector.isfinite().all()):
        raise ValueError(
            f"a word of {path} must have finite numbers, line {number} has {values[:3]}"
        )
    return vector


def nearest(embeddings: Tensor, tokens: Tensor, num_ids: int, k: int) -> Neighbors:
    """The k nearest neighbors by cosine among some tokens, without the token itself.

    Args:
        embeddings: (n, D) embeddings of these tokens, such as those of a trained model.
        tokens: (n,) int64 ids, without special tokens.
        num_ids: V.
        k: neighbors per token, at most n - 1.
    """
    if embeddings.ndim != 2 or tokens.shape != embeddings.shape[:1] or len(tokens) < 2:
        raise ValueError(
            "embeddings must be (n, D) and tokens (n,) with n of at least 2, got "
            f"{tuple(embeddings.shape)} and {tuple(tokens.shape)}"
        )
    check_at_least("k", k, 1)
    k = min(k, len(tokens) - 1)
    unit = F.normalize(embeddings.double(), dim=1)
    table = torch.zeros(num_ids, k, dtype=torch.int64)
    counts = torch.zeros(num_ids, dtype=torch.int64)
    for start in range(0, len(unit), _ROWS):
        similarity = unit[start : start + _ROWS] @ unit.T
        similarity.diagonal(start).fill_(-torch.inf)
        table[tokens[start : start + _ROWS]] = tokens[similarity.topk(k, dim=1).indices]
    counts[tokens] = k
    return Neighbors(table, counts)
