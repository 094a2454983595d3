"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import sslzoo.atomic_write
from sslzoo.atomic_write import atomic_write, exchange, part_of, recover, replacing


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


def test_a_folder_that_cannot_be_written_is_said_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*, dir: Path, prefix: str, suffix: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{dir}/{prefix}0{suffix}")

    monkeypatch.setattr(sslzoo.atomic_write.tempfile, "mkstemp", refused)
    with pytest.raises(OSError, match="Read-only") as caught:
        atomic_write(tmp_path / "page.html", "text")
    assert caught.value.filename == str(tmp_path / "page.html")


def test_a_full_disk_is_the_systems_error_in_safetensors_too(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    resource.setrlimit(resource.RLIMIT_FSIZE, (999, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError, match="too large") as caught, replacing(path) as part:
            save_file({"features": np.zeros(9999)}, part)
    finally:
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, infinite)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert not list(tmp_path.iterdir())


def put(path: Path, kind: str, content: str) -> None:
    """A checkpoint that is a file or a folder."""
    if kind == "folder":
        path.mkdir()
    (path / "inner" if kind == "folder" else path).write_text(content)


def read(path: Path) -> str:
    return (path / "inner" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("after", ["file", "folder"])
@pytest.mark.parametrize("before", ["file", "folder", "nothing"])
def test_files_and_folders_replace_each_other(before: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    if before != "nothing":
        put(path, before, "before")
    put(part_of(path), after, "after")
    exchange(part_of(path), path)
    assert read(path) == "after"
    assert list(tmp_path.iterdir()) == [path], "no part is left"
    recover(tmp_path)
    assert read(path) == "after"


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("renames", [1, 2])
def test_exchange_that_was_killed_between_its_renames_is_recovered(
    kind: str, renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "last.ckpt", []
    put(path, "folder", "before")
    put(part_of(path), kind, "after")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        result = rename(self, target)
        done.append(target)
        if len(done) == renames:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            exchange(part_of(path), path)
    recover(tmp_path)
    assert read(path) == ("before" if renames == 1 else "after")
    assert not list(tmp_path.glob("*.aside"))


def test_reader_that_recovers_within_an_exchange_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "last.ckpt", Path.rename
    put(path, "folder", "before")
    put(part_of(path), "folder", "after")

    def read_between(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        result = rename(self, target)
        recover(tmp_path)
        return result

    monkeypatch.setattr(Path, "rename", read_between)
    exchange(part_of(path), path)
    assert read(path) == "after"
    assert list(tmp_path.iterdir()) == [path]
