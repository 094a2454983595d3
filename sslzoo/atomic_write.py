"""Atomic file writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def check_target(path: Path) -> None:
    """Raise if the path exists and is not a regular file.

    Raises:
        FileExistsError: the path is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"the path must not be a folder or a device, got {str(path)!r}")


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a temporary file in the same folder, then rename it to the target.

    Raises:
        OSError: writing failed; a previous file is unchanged.
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
        Path(part).unlink(missing_ok=True)  # missing if the rename succeeded
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
