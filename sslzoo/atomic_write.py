"""Atomic writes of files, and of folders in two renames."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

_SYSTEM = re.compile(r"os error (\d+)")  # the system's number in an error of safetensors


def check_target(path: Path) -> None:
    """Raise if the path exists and is not a regular file.

    Raises:
        FileExistsError: the path is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"the path must not be a folder or a device, got {str(path)!r}")


@contextmanager
def replacing(path: Path, prefix: str = "tmp") -> Iterator[Path]:
    """Context manager of a temporary file in the same folder that then replaces the target.

    Args:
        path: the target.
        prefix: how the temporary file's name begins.

    Raises:
        OSError: writing failed; a previous file is unchanged.
    """
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = f".part{path.suffix}"
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, name):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    except SafetensorError as error:
        found = _SYSTEM.search(str(error))
        if found is None:
            raise OSError(f"{path} cannot be written: {error}") from None
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
    finally:
        part.unlink(missing_ok=True)  # missing if the rename succeeded


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file through `replacing`."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def save_tensors(value: Any, path: Path, target: Path) -> None:
    """`torch.save`, whose error on a full disk is that of the system.

    Args:
        value: tensors and plain values.
        path: the file.
        target: the path that the error names.

    Raises:
        OSError: writing failed.
    """
    import torch

    try:
        with path.open("wb") as file:
            torch.save(value, file)
    except RuntimeError as error:  # torch's, while it handles the system's
        if not isinstance(error.__context__, OSError):
            raise
        number = error.__context__.errno or 0
        raise OSError(number, os.strerror(number), str(target)) from None


def part_of(path: Path) -> Path:
    """The path beside a checkpoint at which the next one is written for `exchange`."""
    return path.with_name(f"{path.name}.part")


def exchange(part: Path, path: Path) -> None:
    """Put a file or a folder in the place of a checkpoint, either of which may be a folder.

    Where the process dies within it, `recover` puts the checkpoint before it back.
    """
    aside = path.with_name(f"{path.name}.aside")
    if os.path.lexists(path):
        remove(aside)
        path.rename(aside)
    try:
        part.rename(path)
    except OSError:  # a reader's `recover` was in between
        path.rename(aside)
        part.rename(path)
    remove(aside)


def recover(folder: Path) -> None:
    """Put back or remove what each `exchange` in a folder that was cut off had moved aside.

    Several processes may do so at once.
    """
    for aside in folder.glob("*.ckpt.aside"):
        path = aside.with_suffix("")
        with suppress(OSError):  # another process was faster
            if path.exists():
                remove(aside)
            else:
                aside.rename(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
