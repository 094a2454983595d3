"""Augmentations of sentences against slow references, one sentence at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.masks.token import mask_tokens
from sslzoo.random import Keys, sample_keys
from sslzoo.transforms import (
    Drawn,
    Reordering,
    SpanDeletion,
    Substitution,
    TextViews,
    WordDeletion,
    clear_views,
    plain_text,
)
from sslzoo.transforms.text.augmentations import Augmentation, Neighbors, Tokenizer
from sslzoo.transforms.text.special import Special, with_special
from tests.no_sync import DEVICE, syncs

SPECIAL = Special()
DEL = SPECIAL.deleted
LENGTHS = [0, 1, 2, 3, 5, 8, 13, 20, 21, 34, 60, 100]


class Successors:
    """Neighbors: token i may become i + 1 or, where i is even, i + 2 or i + 3; below 10 none."""

    def read(self, tokenizer: Tokenizer | None) -> Neighbors:
        ids = torch.arange(1000)
        counts = torch.where(ids < 10, 0, torch.where(ids % 2 == 0, 3, 1))
        return Neighbors(ids[:, None] + torch.arange(1, 4), counts)


def substitution(fraction: float = 0.3) -> Substitution:
    op = Substitution(Successors(), fraction)
    op.neighbors = op.source.read(None)  # type: ignore[arg-type]
    return op


def sentences(lengths: list[int] = LENGTHS, seed: int = 0) -> Tokens:
    """Words 10, 11, 12, ... in order, so that each says where it stood; noise beyond the end."""
    n = torch.tensor(lengths)
    places = torch.arange(max(lengths) + 3)
    ids = torch.where(places < n[:, None], places + 10, 999)
    return Tokens(ids, n)


def lists(tokens: Tokens) -> list[list[int]]:
    return [row[:n] for row, n in zip(tokens.ids.tolist(), tokens.lengths.tolist(), strict=True)]


def rounded(x: float) -> int:
    return math.floor(x + 0.5)


# Slow references: Python on one sentence, with the same draws.


def smallest(scores: list[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]


def slow_word_deletion(words: list[int], key: Keys) -> list[int]:
    scores = key.uniform("word deletion", 200)[0].tolist()[: len(words)]
    gone = set(smallest(scores, rounded(0.7 * len(words))))
    out: list[int] = []
    for i, word in enumerate(words):
        if i not in gone:
            out.append(word)
        elif i - 1 not in gone:
            out.append(DEL)
    return out


def slow_spans(n: int, count: int, width: int, key: Keys, purpose: str) -> list[int]:
    """Starts of the spans, in the order in which they were drawn."""
    items = n - count * (width - 1)
    drawn = smallest(key.uniform(purpose, 200)[0].tolist()[:items], count)
    return [item + (width - 1) * sum(other < item for other in drawn) for item in drawn]


def sizes(n: int, most: int, together: int) -> tuple[int, int]:
    width = max(1, rounded(0.05 * n))
    count = min(max(rounded(most * 0.05 * n / width), 1), most)
    return min(count, n // (together * width)), width


def slow_span_deletion(words: list[int], key: Keys) -> list[int]:
    count, width = sizes(len(words), 5, 1)
    out: list[int] = list(words)
    for start in sorted(slow_spans(len(words), count, width, key, "span deletion"), reverse=True):
        out[start : start + width] = [DEL]
    return out


def slow_reordering(words: list[int], key: Keys) -> list[int]:
    pairs, width = sizes(len(words), 5, 2)
    starts = slow_spans(len(words), 2 * pairs, width, key, "reordering")
    out = list(words)
    for a, b in zip(starts[::2], starts[1::2], strict=True):
        out[a : a + width], out[b : b + width] = words[b : b + width], words[a : a + width]
    return out


def slow_substitution(words: list[int], key: Keys) -> list[int]:
    table, counts = Successors().read(None)
    scores = key.uniform("substitution: where", 200)[0].tolist()
    units = key.uniform("substitution: which", 200)[0].tolist()
    able = [i for i, word in enumerate(words) if counts[word] > 0]
    order = sorted(able, key=lambda i: (scores[i], i))
    out = list(words)
    for i in order[: rounded(0.3 * len(words))]:
        out[i] = int(table[words[i], int(units[i] * int(counts[words[i]]))])
    return out


PAIRS = [
    (WordDeletion(), slow_word_deletion),
    (SpanDeletion(), slow_span_deletion),
    (Reordering(), slow_reordering),
    (substitution(), slow_substitution),
]
NAMES = ["word deletion", "span deletion", "reordering", "substitution"]


@pytest.mark.parametrize(("op", "slow"), PAIRS, ids=NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_reference(op: Augmentation, slow, seed: int) -> None:
    tokens = sentences()
    keys = sample_keys(seed, 0, torch.arange(len(LENGTHS)))
    out = op(tokens, keys, SPECIAL)
    assert out.ids.shape == tokens.ids.shape
    for row, (words, got) in enumerate(zip(lists(tokens), lists(out), strict=True)):
        assert got == slow(words, Keys(keys.key[row : row + 1])), words


@pytest.mark.parametrize("op", [op for op, _ in PAIRS], ids=NAMES)
def test_depends_on_the_sentence_alone(op: Augmentation) -> None:
    tokens, keys = sentences(), sample_keys(0, 0, torch.arange(len(LENGTHS)))
    whole = lists(op(tokens, keys, SPECIAL))
    for row, n in enumerate(LENGTHS):  # alone, and without padding
        one = Tokens(tokens.ids[row : row + 1, : max(n, 1)], tokens.lengths[row : row + 1])
        assert lists(op(one, Keys(keys.key[row : row + 1]), SPECIAL)) == [whole[row]]


def test_shares_are_those_reported() -> None:
    tokens = Tokens(torch.arange(10, 110).repeat(64, 1), torch.full((64,), 100))
    keys = sample_keys(0, 0, torch.arange(64))
    for row in lists(WordDeletion()(tokens, keys, SPECIAL)):
        assert sum(word != DEL for word in row) == 30
        assert all((a, b) != (DEL, DEL) for a, b in zip(row, row[1:], strict=False))
    for row in lists(SpanDeletion()(tokens, keys, SPECIAL)):
        assert row.count(DEL) == 5
        assert len(row) == 80
    for row in lists(Reordering()(tokens, keys, SPECIAL)):
        assert sorted(row) == list(range(10, 110))
        assert sum(word != i + 10 for i, word in enumerate(row)) == 50
    for row in lists(substitution()(tokens, keys, SPECIAL)):
        assert sum(word != i + 10 for i, word in enumerate(row)) == 30


def test_every_place_is_deleted_alike() -> None:
    n, samples = 12, 6000
    tokens = Tokens(torch.arange(10, 10 + n).repeat(samples, 1), torch.full((samples,), n))
    keys = sample_keys(0, 0, torch.arange(samples))
    for op, share in ((WordDeletion(), 8 / 12), (SpanDeletion(), 3 / 12)):
        kept = torch.zeros(n)
        for row in lists(op(tokens, keys, SPECIAL)):
            kept[[word - 10 for word in row if word != DEL]] += 1
        torch.testing.assert_close(kept / samples, torch.full((n,), 1 - share), rtol=0, atol=0.03)


def test_special_tokens_stand_around_each_sentence() -> None:
    framed = with_special(
        Tokens(torch.tensor([[7, 8, 9], [7, 9, 9]]), torch.tensor([3, 1])), SPECIAL
    )
    assert framed.ids.tolist() == [[2, 7, 8, 9, 3], [2, 7, 3, 0, 0]]
    assert framed.lengths.tolist() == [5, 3]


def test_views_are_fixed_lists_or_drawn() -> None:
    tokens, keys = sentences(), sample_keys(0, 0, torch.arange(len(LENGTHS)))
    fixed = clear_views([WordDeletion(), Reordering()])
    first, second, original = fixed(tokens, keys, SPECIAL)
    own = keys.fold("view", 0, "augmentation", 0)
    step = WordDeletion()(tokens, own, SPECIAL)
    step = Reordering()(step, keys.fold("view", 0, "augmentation", 1), SPECIAL)
    wanted = with_special(step, SPECIAL)
    assert torch.equal(first.ids, wanted.ids)
    assert torch.equal(first.lengths, wanted.lengths)
    assert not torch.equal(first.ids, second.ids)
    (plain,) = plain_text()(tokens, keys, SPECIAL)
    assert torch.equal(plain.ids, original.ids)
    assert torch.equal(plain.ids, with_special(tokens, SPECIAL).ids)


def test_drawn_applies_that_many_of_them_in_their_order() -> None:
    class Mark:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
            ids = torch.cat([tokens.ids[:, 1:], torch.full_like(tokens.ids[:, :1], self.number)], 1)
            return Tokens(ids, tokens.lengths + 1)

    start = Tokens(torch.zeros(400, 2, dtype=torch.int64), torch.zeros(400, dtype=torch.int64))
    drawn = Drawn([Mark(number) for number in (1, 2, 3, 4)])
    out = drawn(start, sample_keys(0, 0, torch.arange(400)), SPECIAL)
    assert out.lengths.tolist() == [2] * 400
    pairs, counts = out.ids.unique(dim=0, return_counts=True)
    assert pairs.tolist() == [[1, 2], [1, 3], [1, 4], [2, 3], [2, 4], [3, 4]]
    assert int(counts.min()) > 400 / 6 * 0.6


def test_no_host_sync() -> None:
    views = clear_views([Drawn([WordDeletion(), SpanDeletion(), Reordering()])])

    def step() -> None:
        ids = torch.empty(4, 30, dtype=torch.int64, device=DEVICE)
        lengths = torch.empty(4, dtype=torch.int64, device=DEVICE)
        keys = Keys(torch.empty(4, dtype=torch.int64, device=DEVICE))
        views(Tokens(ids, lengths), keys, SPECIAL)

    assert syncs(step) == []


# Masking


def masked(samples: int = 2000, n: int = 22) -> tuple[Tokens, Tensor, Tensor, Tensor, Tensor]:
    tokens = Tokens(torch.arange(100, 100 + n).repeat(samples, 1), torch.full((samples,), n))
    out = mask_tokens(tokens, sample_keys(0, 0, torch.arange(samples)), SPECIAL.mask, 100)
    return tokens, out.tokens.ids, out.positions, out.targets, out.real


def test_fifteen_percent_are_hidden_as_in_bert() -> None:
    tokens, ids, places, targets, real = masked()
    assert places.shape == (2000, 3)  # of 20 words
    assert real.all()
    assert torch.equal(targets, tokens.ids.gather(1, places))
    assert int(places.min()) > 0
    assert int(places.max()) < 21
    changed = ids != tokens.ids
    new = ids.gather(1, places)
    assert int(changed.sum()) == int((new != targets).sum())  # nothing else changes
    shares = [(new == SPECIAL.mask).float().mean(), (new == targets).float().mean()]
    # A hundredth of the random tokens is [MASK] too.
    torch.testing.assert_close(torch.stack(shares), torch.tensor([0.801, 0.1]), rtol=0, atol=0.02)


def test_masking_knows_short_sentences() -> None:
    lengths = torch.tensor([0, 1, 2, 3, 9, 12])
    ids = torch.arange(100, 112).repeat(6, 1)
    out = mask_tokens(Tokens(ids, lengths), sample_keys(0, 0, lengths), SPECIAL.mask, 100)
    assert out.real.sum(1).tolist() == [0, 0, 0, 1, 1, 2]  # of 0, 0, 0, 1, 7 and 10 words
    beyond = torch.arange(12) >= lengths[:, None]
    assert torch.equal(out.tokens.ids[beyond], ids[beyond])


def test_errors_name_what_they_got() -> None:
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
        WordDeletion(0)
    with pytest.raises(ValueError, match=r"number must be in \[1, 1\], got 2"):
        Drawn([WordDeletion()], 2)
    with pytest.raises(ValueError, match="must be prepared first"):
        Substitution(Successors())(sentences(), sample_keys(0, 0, torch.arange(12)), SPECIAL)
    with pytest.raises(ValueError, match="3 keys"):
        TextViews([[]])(sentences(), sample_keys(0, 0, torch.arange(3)), SPECIAL)
