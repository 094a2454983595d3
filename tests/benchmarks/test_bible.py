"""The Bible's benchmark: what the command prints, and the files of its tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bible, table
from sslzoo.data.text.lines import FileLines, read_labeled


def test_verses_are_lines_of_the_command() -> None:
    lines = ["Ge1:1 In the beginning", "1Sm2:3 Talk no more: [so]\n"]
    assert bible.read_verses(lines) == [
        ("Ge", 1, "In the beginning"),
        ("1Sm", 2, "Talk no more: [so]"),
    ]
    with pytest.raises(ValueError, match=r"must be a verse such as 'Ge1:1 .*, got 'Genesis'"):
        bible.read_verses(["Genesis"])


def test_every_fifth_chapter_is_held_out(tmp_path: Path) -> None:
    verses = [
        bible.Verse(book, chapter, f"{book} {chapter} {verse}")
        for book, chapters in (("Ge", 12), ("Ruth", 4))
        for chapter in range(1, chapters + 1)
        for verse in range(4)
    ]
    counts = bible.write(tmp_path, verses)
    assert counts == {"text": 56, "book_train": 5, "book_test": 8, "books": 1}
    lines = FileLines(tmp_path / "text.txt")
    assert len(lines) == 56
    assert lines.read([0, 16, 55]) == ["Ge 1 0", "Ge 6 0", "Ruth 4 3"]
    asked, classes = read_labeled(tmp_path / "book_test.tsv")
    assert asked.lines.read([0, 7]) == ["Ge 5 0", "Ge 10 3"]
    assert classes == ["Ge"]


def test_the_table_has_every_encoder() -> None:
    scores = {"linear": 0.5, "spearman_dev": 0.25, "spearman_test": 0.125}
    rows = ("trained", "untrained", "trained_tokens", "words")
    result = {
        "scores": dict.fromkeys(rows, scores),
        "zoo": {"one": scores},
        "lines": {"text": 5, "book_train": 3, "book_test": 2, "books": 1},
        "epochs": 8,
        "config": "c.yaml",
        "cpu_minutes": 1.0,
        "commit": "a" * 40,
        "cpu": "a processor",
        "cores": 2,
    }
    shown = table.bible_table(result)
    assert "| `one` of the zoo | 0.500 | 0.250 / 0.125 |" in shown
    assert "a processor, 2 cores" in shown
