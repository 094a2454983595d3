"""Neighbors from a table and from word vectors are those that a slow search finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslzoo.batch import Tokens
from sslzoo.random import sample_keys
from sslzoo.transforms import Drawn, NearestEmbeddings, Substitution, TableFile, clear_views
from sslzoo.transforms.text.neighbors import nearest
from sslzoo.transforms.text.special import Special


class Alphabet:
    """a = 6, b = 7, ..."""

    special, num_ids = Special(), 32

    def id_of(self, word: str) -> int | None:
        return ord(word) - ord("a") + 6 if len(word) == 1 else None


def test_a_table_keeps_what_is_in_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text("a b\tlong c b\n\nlong a\nd d\nc a\n")
    table, counts = TableFile(str(path)).read(Alphabet())
    assert counts.nonzero().flatten().tolist() == [6, 8]
    assert table[6, : counts[6]].tolist() == [7, 8]
    assert table[8, : counts[8]].tolist() == [6]


@pytest.mark.parametrize("header", ["", "26 4\n"])
def test_nearest_are_those_of_a_slow_search(header: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(20, 4)
    rows = [
        f"{chr(97 + i)} {' '.join(f'{x:.6f}' for x in row)}"
        for i, row in enumerate(vectors.tolist())
    ]
    path = tmp_path / "vectors.txt"
    path.write_text(header + "\n".join(["long 1 2 3 4", *rows]) + "\n")
    table, counts = NearestEmbeddings(str(path), k=3).read(Alphabet())
    assert counts.tolist() == [0] * 6 + [3] * 20 + [0] * 6
    for i in range(20):
        cosines = torch.cosine_similarity(vectors[i : i + 1], vectors).tolist()
        others = sorted((j for j in range(20) if j != i), key=lambda j: -cosines[j])
        assert table[6 + i].tolist() == [6 + j for j in others[:3]]


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, tokens = torch.randn(30, 5), torch.arange(2, 32)
    whole = nearest(embeddings, tokens, 32, 40)
    assert whole.table.shape == (32, 29)
    monkeypatch.setattr("sslzoo.transforms.text.neighbors._ROWS", 7)
    assert torch.equal(nearest(embeddings, tokens, 32, 40).table, whole.table)


def test_views_prepare_what_is_drawn_too(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text("a b\nb a\n")
    views = clear_views([Drawn([Substitution(TableFile(str(path)), 1.0)], 1)])
    views.prepare(Alphabet())
    tokens = Tokens(torch.tensor([[6, 7, 9]]), torch.tensor([3]))
    first, _, text = views(tokens, sample_keys(0, 0, torch.zeros(1).long()), Special())
    assert first.ids.tolist() == [[2, 7, 6, 9, 3]]
    assert text.ids.tolist() == [[2, 6, 7, 9, 3]]


def test_errors_name_what_they_got(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with pytest.raises(ValueError, match="path must be a file"):
        TableFile(str(path)).read(Alphabet())
    with pytest.raises(ValueError, match="path must be a file"):
        NearestEmbeddings(str(path)).read(Alphabet())
    path.write_text("a 1 2\nb 1\n")
    with pytest.raises(ValueError, match="must have 2 numbers, line 2 has 1"):
        NearestEmbeddings(str(path)).read(Alphabet())
    path.write_text("a 1 2\n")
    with pytest.raises(ValueError, match=r"at least 2 words .* got 1"):
        NearestEmbeddings(str(path)).read(Alphabet())
    path.write_text("long word\n")
    with pytest.raises(ValueError, match="must have a word with a neighbor"):
        TableFile(str(path)).read(Alphabet())
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        nearest(torch.zeros(3, 2), torch.arange(3), 32, 0)
