"""File locks: one process at a time, on all machines that share a file system.

The kernel, or the server of a network file system, frees a lock when its process ends in any way.
A file that is left without a lock means nothing.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

if sys.platform != "win32":
    import fcntl

_HELD = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class FileLock(NamedTuple):
    """A lock that this process holds.

    Attributes:
        path: the file, which exists while the lock is held.
        file: the open file.
        is_real: whether the file system has locks; without, nobody is kept out.
    """

    path: Path
    file: IO[bytes]
    is_real: bool

    def release(self) -> None:
        """Remove the file and free the lock."""
        with suppress(OSError):  # removed by hand
            if _is_at(self.file, self.path):
                self.path.unlink()
        self.file.close()


def acquire(path: Path, about: Mapping[str, Any]) -> FileLock | None:
    """Lock a file, which is created; None: another open file has the lock.

    Args:
        path: the file.
        about: plain values to write into it, for those that it keeps out.

    Raises:
        OSError: the file cannot be written.
    """
    while True:
        file = path.open("a+b", buffering=0)
        try:
            locked = _lock(file)
            if locked is False:
                file.close()
                return None
            if _is_at(file, path):
                try:
                    file.truncate(0)
                    file.write(json.dumps(about).encode())
                except OSError as error:
                    path.unlink(missing_ok=True)
                    raise OSError(error.errno, error.strerror, str(path)) from None
                # A worker that outlives its parent would hold the lock.
                os.register_at_fork(after_in_child=file.close)
                return FileLock(path, file, locked is True)
        except BaseException:
            file.close()
            raise
        file.close()  # its holder removed it meanwhile


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file; False without a file."""
    try:
        with path.open("r+b") as file:
            return _lock(file) is False
    except FileNotFoundError:
        return False


def holder(path: Path) -> dict[str, Any]:
    """What the holder of a lock has written into its file; empty if it cannot be read."""
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _lock(file: IO[bytes]) -> bool | None:
    """Try to lock an open file; None: the file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
