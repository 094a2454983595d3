"""Augmentations of sentences at the level of tokens: CLEAR's four.

Wu, Wang, Gu, Khabsa, Sun and Ma, CLEAR, 2020, https://arxiv.org/abs/2012.15466, section 3.3 (the
shares below are reported). Each takes a batch of sentences without [CLS] and [SEP] and gives one
of the same padded length; every draw is keyed by the sentence, so that its result depends neither
on its neighbors nor on the padding. Shapes: B sentences, L places, S spans, n a sentence's length.

Ours, where sentences are short: a share of n is rounded, a span has one token at least, and
there are so many spans as make up the same share of the sentence, at least one.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.random import Keys
from sslzoo.transforms.text.special import Special


class Tokenizer(Protocol):
    """What a source of neighbors asks of a tokenizer."""

    special: Special

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""

    def id_of(self, word: str) -> int | None:
        """The id of a word that is one token, else None."""


class Neighbors(NamedTuple):
    """Tokens that may stand for each other.

    Args:
        table: (V, K) int64; row i has the neighbors of token i first.
        counts: (V,) int64, how many; 0 for a token that is never replaced.
    """

    table: Tensor
    counts: Tensor


class NeighborSource(Protocol):
    """Where `Substitution` has its neighbors from."""

    def read(self, tokenizer: Tokenizer) -> Neighbors:
        """The neighbors of each of the tokenizer's tokens."""


class Augmentation(Protocol):
    """One way to change sentences."""

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        """The changed sentences; keys (B,)."""


def chosen(share: Tensor, allowed: Tensor, keys: Keys, purpose: str) -> Tensor:
    """A uniform choice of `share` of the allowed places of each row (all, where there are fewer).

    Shapes: share (B,) int64, allowed (B, L) bool -> (B, L) bool.
    """
    score = keys.uniform(purpose, allowed.shape[1]).masked_fill(~allowed, 2.0)
    rank = score.argsort(dim=1, stable=True).argsort(dim=1)
    return allowed & (rank < share[:, None])


class Spans(NamedTuple):
    """S spans of each sentence, without overlap and in random order, all of one width.

    Args:
        start: (B, S) int64; L or more for a span that the sentence lacks.
        width: (B, 1) int64.
    """

    start: Tensor
    width: Tensor

    def cover(self, length: int) -> Tensor:
        """Which span covers which place. (B, S, L) bool."""
        places = torch.arange(length, device=self.start.device)
        after = places - self.start[:, :, None]
        return (after >= 0) & (after < self.width[:, :, None])


def draw_spans(
    tokens: Tokens, keys: Keys, count: Tensor, most: int, width: Tensor, purpose: str
) -> Spans:
    """`count` spans of `width` tokens, each set of spans without overlap equally likely.

    A sentence of n tokens in which `count` spans are one item each has m = n - count (width - 1)
    items: choose `count` of them, then give each its width again.

    Args:
        tokens: the sentences.
        keys: one a sentence.
        count: (B,) int64, at most n / width.
        most: S, at least every count.
        width: (B,) int64.
        purpose: of the draw.
    """
    size = max(tokens.ids.shape[1], most)
    items = tokens.lengths - count * (width - 1)
    places = torch.arange(size, device=tokens.ids.device)
    score = keys.uniform(purpose, size).masked_fill(places >= items[:, None], 2.0)
    item = score.argsort(dim=1, stable=True)[:, :most]
    missing = places[:most] >= count[:, None]
    before = (item[:, None] < item[:, :, None]) & ~missing[:, None]  # (B, S, S)
    start = item + before.sum(2) * (width[:, None] - 1)
    return Spans(start.masked_fill(missing, size), width[:, None])


def shorten(ids: Tensor, keep: Tensor, special: Special) -> Tokens:
    """The kept tokens of each row, moved together. Shapes: ids (B, L), keep (B, L) bool."""
    length = ids.shape[1]
    place = torch.where(keep, keep.cumsum(1) - 1, length)  # the place behind is thrown away
    moved = ids.new_full((len(ids), length + 1), special.pad).scatter_(1, place, ids)
    return Tokens(moved[:, :length], keep.sum(1))


class WordDeletion:
    """A share of the tokens goes; each run of them becomes one [DEL].

    Args:
        fraction: of the tokens; 0.7 reported.
    """

    def __init__(self, fraction: float = 0.7) -> None:
        self.fraction = _checked("fraction", fraction)

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        inside = _inside(tokens)
        gone = chosen(_share(tokens.lengths, self.fraction), inside, keys, "word deletion")
        first = gone & ~torch.nn.functional.pad(gone, (1, 0))[:, :-1]  # of its run
        ids = tokens.ids.masked_fill(gone, special.deleted)
        return shorten(ids, inside & (first | ~gone), special)


class SpanDeletion:
    """A few spans go; each becomes one [DEL].

    Args:
        num_spans: at most; 5 reported.
        fraction: of the tokens in one span; 0.05 reported.
    """

    def __init__(self, num_spans: int = 5, fraction: float = 0.05) -> None:
        self.num_spans = num_spans
        self.fraction = _checked("fraction", fraction)

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        length = tokens.ids.shape[1]
        count, width = _spans(tokens.lengths, self.num_spans, self.fraction, 1)
        spans = draw_spans(tokens, keys, count, self.num_spans, width, "span deletion")
        gone = spans.cover(length).any(1)
        first = spans._replace(width=torch.ones_like(spans.width)).cover(length).any(1)
        ids = tokens.ids.masked_fill(gone, special.deleted)
        return shorten(ids, _inside(tokens) & (first | ~gone), special)


class Reordering:
    """Pairs of spans change places.

    Args:
        num_pairs: at most; 5 reported.
        fraction: of the tokens in one span; 0.05 reported.
    """

    def __init__(self, num_pairs: int = 5, fraction: float = 0.05) -> None:
        self.num_pairs = num_pairs
        self.fraction = _checked("fraction", fraction)

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        length = tokens.ids.shape[1]
        pairs, width = _spans(tokens.lengths, self.num_pairs, self.fraction, 2)
        most = 2 * self.num_pairs
        spans = draw_spans(tokens, keys, 2 * pairs, most, width, "reordering")
        partner = spans.start.unflatten(1, (-1, 2)).flip(2).flatten(1)  # of spans 2i and 2i + 1
        shift = (spans.cover(length) * (partner - spans.start)[:, :, None]).sum(1)
        places = torch.arange(length, device=shift.device)
        return tokens._replace(ids=tokens.ids.gather(1, places + shift))


class Substitution:
    """A share of the tokens is replaced by similar ones, each drawn evenly from its neighbors.

    Args:
        source: of the neighbors, such as `TableFile` or `NearestEmbeddings`.
        fraction: of the tokens, as far as so many have neighbors; 0.3 reported.
    """

    def __init__(self, source: NeighborSource, fraction: float = 0.3) -> None:
        self.source = source
        self.fraction = _checked("fraction", fraction)
        self.neighbors: Neighbors | None = None

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Read the neighbors of the tokenizer's tokens."""
        self.neighbors = self.source.read(tokenizer)

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        if self.neighbors is None:
            raise ValueError("Substitution has no neighbors yet: call prepare(tokenizer) first")
        if self.neighbors.table.device != tokens.ids.device:  # once a run
            self.neighbors = Neighbors(*(x.to(tokens.ids.device) for x in self.neighbors))
        table, counts = self.neighbors
        ids = tokens.ids
        count = counts[ids]
        allowed = _inside(tokens) & (count > 0)
        share = _share(tokens.lengths, self.fraction)
        replaced = chosen(share, allowed, keys, "substitution: where")
        unit = keys.uniform("substitution: which", ids.shape[1])
        which = (unit * count).long().clamp_max((count - 1).clamp_min(0))
        return tokens._replace(ids=torch.where(replaced, table[ids, which], ids))


def _checked(name: str, fraction: float) -> float:
    if not 0 < fraction <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {fraction}")
    return fraction


def _inside(tokens: Tokens) -> Tensor:
    places = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
    return places < tokens.lengths[:, None]


def _share(lengths: Tensor, fraction: float) -> Tensor:
    """Rounded, halves upwards. (B,) int64."""
    return (lengths.double() * fraction + 0.5).long()


def _spans(lengths: Tensor, most: int, fraction: float, together: int) -> tuple[Tensor, Tensor]:
    """How many spans (or pairs, `together` 2) a sentence has and how wide each is. (B,) both."""
    width = _share(lengths, fraction).clamp_min(1)
    count = (lengths.double() * (most * fraction) / width + 0.5).long().clamp(1, most)
    return torch.minimum(count, lengths // (together * width)), width
