"""Sources of similar tokens for `Substitution`: a file of words, or embeddings.

V tokens, K neighbors of each at most, D width of embeddings.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.transforms.text.augmentations import Neighbors, Tokenizer

_ROWS = 1024  # whose similarities with all others are formed at a time


class TableFile:
    """Neighbors by hand: each line a word and the words that may stand for it, by spaces or tabs.

    Words that are not one token are left out. CLEAR takes similar words as Jia et al., 2019, had
    them (reported); such a list can be given in this form.

    Args:
        path: of the file, UTF-8, in the tokenizer's case.

    Raises:
        ValueError: in `read`, where there is no such file or no word of it is a token.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, tokenizer: Tokenizer) -> Neighbors:
        if not Path(self.path).is_file():
            raise ValueError(f"a file of neighbors wanted, got {self.path!r}: there is none")
        found: dict[int, dict[int, None]] = {}  # in the order of the file, each once
        for line in Path(self.path).read_text(encoding="utf-8").splitlines():
            ids = [tokenizer.id_of(word) for word in line.split()]
            if ids and ids[0] is not None:
                others = [i for i in ids[1:] if i is not None and i != ids[0]]
                found.setdefault(ids[0], {}).update(dict.fromkeys(others))
        most = max(map(len, found.values()), default=0)
        if not most:
            raise ValueError(f"{self.path!r} has no word with a neighbor in the vocabulary")
        table = torch.zeros(tokenizer.num_ids, most, dtype=torch.int64)
        counts = torch.zeros(tokenizer.num_ids, dtype=torch.int64)
        for word, near in found.items():
            table[word, : len(near)] = torch.tensor(list(near), dtype=torch.int64)
            counts[word] = len(near)
        return Neighbors(table, counts)


class NearestEmbeddings:
    """The K nearest by cosine of word vectors in the text form of GloVe and word2vec.

    Each line is a word and its D numbers; a first line of two numbers (word2vec's) is passed over.
    Words that are not one token are left out; tokens without a vector are never replaced.

    Args:
        path: of the file.
        k: neighbors of each token.

    Raises:
        ValueError: in `read`, where there is no such file, a line has another number of columns,
            or fewer than two words of it are tokens.
    """

    def __init__(self, path: str, k: int = 10) -> None:
        self.path, self.k = path, k

    def read(self, tokenizer: Tokenizer) -> Neighbors:
        if not Path(self.path).is_file():
            raise ValueError(f"a file of word vectors wanted, got {self.path!r}: there is none")
        vectors: dict[int, Tensor] = {}
        width = 0
        with Path(self.path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                width = width or len(values)
                if len(values) != width:
                    raise ValueError(
                        f"{self.path}: {width} numbers a word wanted, line {number} has "
                        f"{len(values)}"
                    )
                token = tokenizer.id_of(word)
                if token is not None:
                    vectors[token] = torch.tensor([float(value) for value in values])
        if len(vectors) < 2:
            raise ValueError(f"{self.path!r} has {len(vectors)} words of the vocabulary, 2 wanted")
        tokens = torch.tensor(sorted(vectors))
        return nearest(torch.stack([vectors[int(i)] for i in tokens]), tokens, tokenizer.num_ids,
                       self.k)  # fmt: skip


def nearest(embeddings: Tensor, tokens: Tensor, num_ids: int, k: int) -> Neighbors:
    """The k nearest of some tokens among themselves, by cosine; nobody is its own neighbor.

    Args:
        embeddings: (n, D) of these tokens, such as those of a trained model.
        tokens: (n,) int64 ids; leave special tokens out.
        num_ids: V.
        k: neighbors of each, at most n - 1.
    """
    if embeddings.ndim != 2 or tokens.shape != embeddings.shape[:1] or len(tokens) < 2:
        raise ValueError(
            "embeddings (n, D) and tokens (n,) of at least 2 wanted, got "
            f"{tuple(embeddings.shape)} and {tuple(tokens.shape)}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
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
