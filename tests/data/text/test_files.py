"""Text files as they are: byte order marks, other encodings, line ends, blank lines."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from sslzoo.data.text import lines
from sslzoo.data.text.lines import FileLines, read_labeled, read_pairs, walk
from sslzoo.text_file import read_text

TEXT = "ein Bär\nzwei Bären\n"
MARKED = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", *MARKED, "latin-1", "cp1252", "cp437", "shift_jis"])
def test_other_encodings_are_refused_or_decoded(tmp_path: Path, encoding: str) -> None:
    content = TEXT.replace("ä", "あ") if encoding == "shift_jis" else TEXT
    path = write(tmp_path / "a.txt", content, encoding)
    if encoding in ("utf-8", "utf-8-sig"):
        assert list(walk(FileLines(path))) == TEXT.splitlines()
        assert read_text(path) == TEXT
        return
    with pytest.raises(
        ValueError, match=r"text file must (be UTF-8|not contain NUL).*, got .*a\.txt"
    ):
        FileLines(path)
    if encoding in ("utf-16", "utf-32"):
        assert read_text(path) == TEXT  # a small file is decoded by its mark
    else:
        with pytest.raises(ValueError, match=r"must (be UTF-8|not contain NUL).* line 1 of"):
            read_text(path)


@pytest.mark.parametrize("block", [1, 7, 1 << 26])
@pytest.mark.parametrize(
    "content", ["\ufeffone\ntwo", "\ufeff\n\none\r\n\ntwo\r\n", "\ufeffone\n\n\ntwo"]
)
def test_a_byte_order_mark_is_no_text(
    tmp_path: Path, content: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK", block)
    assert list(walk(FileLines(write(tmp_path / "a.txt", content)))) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"one\nt\0wo\n", r"NUL characters, got one in line 2 of"),
        (b"one\rtwo\r", r"lines must end in .*, got .r alone"),
        (b"\xef\xbb\xbf", "must have a line of text, got none"),
        (b"one\n\n\xff\n", r"must be UTF-8, got the byte 0xff in line 3"),
        (b"", "must exist and not be empty"),
    ],
)
def test_other_bytes_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FileLines(write(tmp_path / "a.txt", content))


def test_the_first_part_of_a_large_file_is_checked_without_cutting_a_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.txt", "ä\n" * 20)
    for size in (7, 8, 9, 10):
        monkeypatch.setattr(lines, "_CHECKED", size)
        assert len(FileLines(path)) == 20


LABELED = "no\ta man\nyes\tthe dogs\tsing\nno\tgrass\n"


@pytest.mark.parametrize(
    "content",
    [
        LABELED,
        "\ufeff" + LABELED,
        LABELED.replace("\n", "\r\n"),
        LABELED.replace("\n", "\n\n\n"),
        LABELED.replace("no\t", " no \t"),
        LABELED.rstrip(),
    ],
)
def test_labels_do_not_depend_on_marks_spaces_or_line_ends(tmp_path: Path, content: str) -> None:
    text, classes = read_labeled(write(tmp_path / "a.tsv", content))
    assert classes == ["no", "yes"]
    assert text.label is not None
    assert text.label.tolist() == [0, 1, 0]
    assert list(walk(text.lines)) == ["a man", "the dogs\tsing", "grass"]


def test_labels_have_one_form_of_unicode(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    _, classes = read_labeled(write(tmp_path / "a.tsv", f"{forms[0]}\ta\n{forms[1]}\tb\n"))
    assert classes == forms[:1]


@pytest.mark.parametrize("wrong", ["a man", "\ta man", "yes\t", "yes\t ", " "])
def test_a_wrong_line_has_its_number_in_the_file(tmp_path: Path, wrong: str) -> None:
    path = write(tmp_path / "a.tsv", f"\ufeff\n\nno\tgrass\r\n\n{wrong}\nno\tgrass\n")
    with pytest.raises(ValueError, match=r"must be label<TAB>sentence, line 5 is '"):
        read_labeled(path)


PAIRS = '"a man, red",the dogs,2.5\n"two\nlines",green grass,4\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_pairs_are_those_of_the_csv(tmp_path: Path, encoding: str, end: str) -> None:
    content = PAIRS.replace("2.5\n", "2.5" + end).replace("4\n", "4" + end)
    text = read_pairs(write(tmp_path / "a.csv", content, encoding))
    assert text.label is not None
    assert text.label.tolist() == [2.5, 2.5, 4, 4]
    assert text.lines.read([0, 2]) == ["a man, red", "two\nlines"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,b", r"row 3 is \['a', 'b'\]"),
        ("a,b,good", "row 3 is"),
        ("a,b,nan", "row 3 is"),
        ("a,b,inf", "row 3 is"),
        ("a\tb\t3", "row 3 is"),
        ("a;b;3", "row 3 is"),
        ('"a,b,3', "row 3: unexpected end"),
        ("a,b,3\0", "NUL"),
    ],
)
def test_a_wrong_pair_has_its_row(tmp_path: Path, row: str, said: str) -> None:
    path = write(tmp_path / "a.csv", "a,b,3\n\n" + row)
    with pytest.raises(ValueError, match=said):
        read_pairs(path)
    with pytest.raises(ValueError, match="must have rows, got none"):
        read_pairs(write(tmp_path / "b.csv", "\n"))
