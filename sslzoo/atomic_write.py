"""Writing: a file whole or not at all, and never in the place of what is no file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def check_target(path: Path) -> None:
    """Refuse to put a file where something else stands.

    Raises:
        FileExistsError: it is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"a path for a file wanted, got {str(path)!r}, which is no file")


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file beside its place, and rename it once it is whole.

    Raises:
        OSError: it cannot be written; what stood there still does.
    """
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException as error:
        Path(part).unlink(missing_ok=True)  # it is gone where what was raised came after the rename
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
