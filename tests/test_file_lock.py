"""A file lock ends with its process, however that ends, and keeps nobody out for ever."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sslzoo.file_lock import acquire, holder, is_held

HOLDS = """
import sys, time, fcntl
file = open(sys.argv[1], "a+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(100)
"""


def test_lock_of_a_killed_process_is_free_and_its_file_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    command = [sys.executable, "-S", "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_held(path)
        assert acquire(path, {"process": 2}) is None
        assert holder(path) == {}
        process.kill()
    assert path.exists()
    assert not is_held(path)
    lock = acquire(path, {"process": 2})
    assert lock is not None
    assert holder(path) == {"process": 2}
    lock.release()
    assert list(tmp_path.iterdir()) == []
    assert not is_held(path)


def test_lock_does_not_pass_on_to_a_forked_worker(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    lock = acquire(path, {})
    assert lock is not None
    parents, workers = socket.socketpair()
    worker = os.fork()
    if worker == 0:
        workers.send(b"here")
        workers.recv(1)
        os._exit(0)
    parents.recv(4)
    lock.file.close()  # as a killed parent's
    assert not is_held(path)
    parents.send(b"x")
    os.waitpid(worker, 0)
    parents.close()
    workers.close()


def test_removing_the_file_by_hand_gives_a_lock_that_the_first_holder_leaves_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.lock"
    first = acquire(path, {"process": 1})
    assert first is not None
    path.unlink()
    second = acquire(path, {"process": 2})
    assert second is not None
    first.release()
    assert holder(path) == {"process": 2}
    assert is_held(path)
    second.release()


def test_file_system_without_locks_is_said_and_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(number: int) -> Any:
        def flock(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    path = tmp_path / "run.lock"
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    lock = acquire(path, {})
    assert lock is not None
    assert not lock.is_real
    assert not is_held(path)
    monkeypatch.setattr(fcntl, "flock", fails(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        acquire(path, {})


def test_a_lock_for_which_the_disk_has_no_room_is_named_and_not_left(tmp_path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            acquire(tmp_path / "run.lock", {"process": 1})
    finally:
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, infinite)
    assert caught.value.filename == str(tmp_path / "run.lock")
    assert not list(tmp_path.iterdir())
