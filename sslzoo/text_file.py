"""Text files: UTF-8, or another encoding that a byte order mark names; never guessed."""

from __future__ import annotations

import codecs
from pathlib import Path

# Longest first, since the mark of UTF-16 begins that of UTF-32.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(start: bytes) -> str:
    """The encoding that the byte order mark of a file names; UTF-8 without one."""
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")


def check_text(path: str | Path, content: bytes, encoding: str = "utf-8") -> str:
    """Decode text, without its byte order mark.

    Args:
        path: the file, for errors.
        content: its bytes.
        encoding: the encoding.

    Raises:
        ValueError: the bytes are of another encoding, or contain a NUL.
    """
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"a text file must be {encoding.upper()}, got the byte {content[error.start]:#04x} in "
            f"line {line} of {str(path)!r}; convert it: iconv -f LATIN1 -t UTF-8"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"a text file must not contain NUL characters, got one in line {line} of "
            f"{str(path)!r}; if it is UTF-16, convert it: iconv -f UTF-16 -t UTF-8"
        )
    return text


def read_text(path: str | Path) -> str:
    """Read a text file whole.

    Raises:
        ValueError: see `check_text`.
    """
    content = Path(path).expanduser().read_bytes()
    return check_text(path, content, encoding_of(content))
