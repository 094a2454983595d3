"""A file is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslzoo.atomic_write import atomic_write


def test_what_cannot_be_written_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    atomic_write(path, "first")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "second \ud800")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(FileExistsError, match="must not be a folder"):
        atomic_write(tmp_path, "text")
