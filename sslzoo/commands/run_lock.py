"""Lock of a run directory: one command at a time trains in it, and one evaluates it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sslzoo.commands.cluster import job_number
from sslzoo.file_lock import acquire, holder, is_held
from sslzoo.run_folder import RunFolder

LOCK = "run.lock"
PATIENCE = 10.0  # seconds, in which a command that was stopped still saves
# Seconds for the lock of a lost node: NFS keeps it for a lease, of 90 seconds by default.
PATIENCE_IN_JOB = 120.0
_INTERVAL = 0.2


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Context manager that holds the lock of a run directory.

    A lock that is held is waited for: for seconds, or for two minutes if its holder is an earlier
    start of the same SLURM job, which is then taken for lost.

    Raises:
        ValueError: another command holds it.
        OSError: it cannot be written.
    """
    path = run.path / LOCK
    began = time.monotonic()
    is_told = False
    while (lock := acquire(path, _about())) is None:
        held = holder(path)
        is_earlier = _is_earlier_start(held)
        if time.monotonic() - began < (PATIENCE_IN_JOB if is_earlier else PATIENCE):
            if not is_told:
                rank_zero_info(f"waiting for {_named(held)}, which still writes {run.path}")
            is_told = True
            time.sleep(_INTERVAL)
        elif is_earlier:
            rank_zero_warn(
                f"{_named(held)}, an earlier start of this job, still holds {path}: it is taken "
                "for lost"
            )
            path.unlink(missing_ok=True)
        else:
            raise ValueError(
                f"a run directory must be written by one command at a time, got {run.path}, which "
                f"{_named(held)} is writing; wait for its end or stop it, or pass another "
                "--trainer.default_root_dir, for a directory of its own; if no such process is "
                f"left, remove {path}"
            )
    if not lock.is_real:
        rank_zero_info(
            f"the file system of {run.path} has no locks: a second command that resumes this run "
            "would not be refused"
        )
    try:
        yield
    finally:
        lock.release()


def wait_for_earlier_start(folder: Path) -> None:
    """Wait, on every rank, until an earlier start of this SLURM job has ended.

    Args:
        folder: a run directory, from which this rank is to read a checkpoint.
    """
    path = folder / LOCK
    until = time.monotonic() + PATIENCE_IN_JOB
    while is_held(path) and _is_earlier_start(holder(path)) and time.monotonic() < until:
        time.sleep(_INTERVAL)


def _about() -> dict[str, Any]:
    """What the file says of its holder."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "job": job_number(),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "start": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }


def _is_earlier_start(held: Mapping[str, Any]) -> bool:
    """Whether the holder is this SLURM job before it was requeued."""
    own, start = _about(), held.get("start")
    same = all(held.get(name) == own[name] for name in ("job", "cluster"))
    return bool(own["job"]) and same and isinstance(start, int) and start < own["start"]


def _named(held: Mapping[str, Any]) -> str:
    if "process" not in held:
        return "another process"
    job = f", SLURM job {held['job']}" if held.get("job") else ""
    return f"process {held['process']} on {held.get('host')}{job}"
