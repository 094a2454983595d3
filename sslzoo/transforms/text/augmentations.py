"""CLEAR's four augmentations of sentences at the level of tokens.

Wu, Wang, Gu, Khabsa, Sun and Ma, CLEAR, 2020, https://arxiv.org/abs/2012.15466, section 3.3, from
which the default fractions are. Each augmentation maps a batch of sentences without [CLS] and [SEP]
to one of the same padded length. Every draw is keyed by the sentence, so its result depends neither
on the rest of the batch nor on the padding.

Deviations (short sentences): a fraction of the length is rounded, a span has at least one token,
and the number of spans, at least one, keeps the total fraction.

Shapes: B sentences, L tokens, S spans, n tokens of a sentence.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.checks import check_interval
from sslzoo.random import Keys
from sslzoo.transforms.text.special import Special


class Tokenizer(Protocol):
    """The part of a tokenizer that augmentations use."""

    special: Special

    @property
    def num_ids(self) -> int:
        """Size of the vocabulary: the largest id plus 1."""

    def id_of(self, word: str) -> int | None:
        """The id of a word that is a single token, else None."""


class Neighbors(NamedTuple):
    """The tokens that may replace each token.

    Args:
        table: (V, K) int64; row i begins with the neighbors of token i.
        counts: (V,) int64 number of neighbors; 0 for a token that is never replaced.
    """

    table: Tensor
    counts: Tensor


class NeighborSource(Protocol):
    """A source of neighbors for `Substitution`."""

    def read(self, tokenizer: Tokenizer) -> Neighbors:
        """The neighbors of each of the tokenizer's tokens."""


class Augmentation(Protocol):
    """An augmentation of sentences."""

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        """Augment B sentences with B keys."""


def choose(count: Tensor, allowed: Tensor, keys: Keys, purpose: str) -> Tensor:
    """Choose `count` of the allowed positions of each row uniformly (all if there are fewer).

    Shapes: count (B,) int64, allowed (B, L) bool -> (B, L) bool.
    """
    score = keys.uniform(purpose, allowed.shape[1]).masked_fill(~allowed, 2.0)
    rank = score.argsort(dim=1, stable=True).argsort(dim=1)
    return allowed & (rank < count[:, None])


class Spans(NamedTuple):
    """S spans per sentence, disjoint, of one width, in random order.

    Args:
        start: (B, S) int64; L or more for a missing span.
        width: (B, 1) int64.
    """

    start: Tensor
    width: Tensor

    def cover(self, length: int) -> Tensor:
        """Whether each span covers each position, (B, S, L) bool."""
        positions = torch.arange(length, device=self.start.device)
        after = positions - self.start[:, :, None]
        return (after >= 0) & (after < self.width[:, :, None])


def draw_spans(
    tokens: Tokens, keys: Keys, count: Tensor, most: int, width: Tensor, purpose: str
) -> Spans:
    """Draw `count` disjoint spans of `width` tokens, uniformly among all such sets.

    If each span is collapsed to one item, a sentence of n tokens has n - count (width - 1) items.
    So `count` of these items are drawn and expanded to their width.

    Args:
        tokens: B sentences.
        keys: B keys.
        count: (B,) int64, at most n / width.
        most: S, an upper bound of `count`.
        width: (B,) int64.
        purpose: purpose of the draw.
    """
    size = max(tokens.ids.shape[1], most)
    items = tokens.lengths - count * (width - 1)
    positions = torch.arange(size, device=tokens.ids.device)
    score = keys.uniform(purpose, size).masked_fill(positions >= items[:, None], 2.0)
    item = score.argsort(dim=1, stable=True)[:, :most]
    missing = positions[:most] >= count[:, None]
    before = (item[:, None] < item[:, :, None]) & ~missing[:, None]  # (B, S, S)
    start = item + before.sum(2) * (width[:, None] - 1)
    return Spans(start.masked_fill(missing, size), width[:, None])


def shorten(ids: Tensor, keep: Tensor, special: Special) -> Tokens:
    """Remove the other tokens of each row. Shapes: ids (B, L), keep (B, L) bool."""
    length = ids.shape[1]
    target = torch.where(keep, keep.cumsum(1) - 1, length)  # the last position is discarded
    moved = ids.new_full((len(ids), length + 1), special.pad).scatter_(1, target, ids)
    return Tokens(moved[:, :length], keep.sum(1))


class WordDeletion:
    """Delete a fraction of the tokens; each run of deleted tokens becomes one [DEL].

    Args:
        fraction: fraction of the tokens to delete; 0.7 in the paper.
    """

    def __init__(self, fraction: float = 0.7) -> None:
        check_interval("fraction", fraction, 0, 1, "(]")
        self.fraction = fraction

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        inside = _inside(tokens)
        deleted = choose(_num_tokens(tokens.lengths, self.fraction), inside, keys, "word deletion")
        first = deleted & ~torch.nn.functional.pad(deleted, (1, 0))[:, :-1]  # first of its run
        ids = tokens.ids.masked_fill(deleted, special.deleted)
        return shorten(ids, inside & (first | ~deleted), special)


class SpanDeletion:
    """Delete a few spans; each becomes one [DEL].

    Args:
        num_spans: largest number of spans; 5 in the paper.
        fraction: length of a span as a fraction of the sentence; 0.05 in the paper.
    """

    def __init__(self, num_spans: int = 5, fraction: float = 0.05) -> None:
        check_interval("fraction", fraction, 0, 1, "(]")
        self.num_spans = num_spans
        self.fraction = fraction

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        length = tokens.ids.shape[1]
        count, width = _spans(tokens.lengths, self.num_spans, self.fraction, 1)
        spans = draw_spans(tokens, keys, count, self.num_spans, width, "span deletion")
        deleted = spans.cover(length).any(1)
        first = spans._replace(width=torch.ones_like(spans.width)).cover(length).any(1)
        ids = tokens.ids.masked_fill(deleted, special.deleted)
        return shorten(ids, _inside(tokens) & (first | ~deleted), special)


class Reordering:
    """Swap pairs of spans.

    Args:
        num_pairs: largest number of pairs; 5 in the paper.
        fraction: length of a span as a fraction of the sentence; 0.05 in the paper.
    """

    def __init__(self, num_pairs: int = 5, fraction: float = 0.05) -> None:
        check_interval("fraction", fraction, 0, 1, "(]")
        self.num_pairs = num_pairs
        self.fraction = fraction

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        length = tokens.ids.shape[1]
        pairs, width = _spans(tokens.lengths, self.num_pairs, self.fraction, 2)
        most = 2 * self.num_pairs
        spans = draw_spans(tokens, keys, 2 * pairs, most, width, "reordering")
        partner = spans.start.unflatten(1, (-1, 2)).flip(2).flatten(1)  # of spans 2i and 2i + 1
        shift = (spans.cover(length) * (partner - spans.start)[:, :, None]).sum(1)
        positions = torch.arange(length, device=shift.device)
        return tokens._replace(ids=tokens.ids.gather(1, positions + shift))


class Substitution:
    """Replace a fraction of the tokens by similar ones, drawn uniformly from their neighbors.

    Args:
        source: source of the neighbors, such as `TableFile` or `NearestEmbeddings`.
        fraction: fraction of the tokens to replace (fewer if too few have neighbors); 0.3 in the
            paper.
    """

    def __init__(self, source: NeighborSource, fraction: float = 0.3) -> None:
        check_interval("fraction", fraction, 0, 1, "(]")
        self.source = source
        self.fraction = fraction
        self.neighbors: Neighbors | None = None

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Read the neighbors of the tokenizer's tokens."""
        self.neighbors = self.source.read(tokenizer)

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        if self.neighbors is None:
            raise ValueError("Substitution must be prepared first; call prepare(tokenizer)")
        if self.neighbors.table.device != tokens.ids.device:  # once per run
            self.neighbors = Neighbors(*(x.to(tokens.ids.device) for x in self.neighbors))
        table, counts = self.neighbors
        ids = tokens.ids
        count = counts[ids]
        allowed = _inside(tokens) & (count > 0)
        wanted = _num_tokens(tokens.lengths, self.fraction)
        replaced = choose(wanted, allowed, keys, "substitution: where")
        unit = keys.uniform("substitution: which", ids.shape[1])
        which = (unit * count).long().clamp_max((count - 1).clamp_min(0))
        return tokens._replace(ids=torch.where(replaced, table[ids, which], ids))


def _inside(tokens: Tokens) -> Tensor:
    positions = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
    return positions < tokens.lengths[:, None]


def _num_tokens(lengths: Tensor, fraction: float) -> Tensor:
    """A fraction of the lengths, with halves rounded up, (B,) int64."""
    return (lengths.double() * fraction + 0.5).long()


def _spans(lengths: Tensor, most: int, fraction: float, together: int) -> tuple[Tensor, Tensor]:
    """Number of spans (or pairs: `together` 2) per sentence, and their width; (B,) each."""
    width = _num_tokens(lengths, fraction).clamp_min(1)
    count = (lengths.double() * (most * fraction) / width + 0.5).long().clamp(1, most)
    return torch.minimum(count, lengths // (together * width)), width
