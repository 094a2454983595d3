"""One command at a time trains in a run directory; a restart is never kept out for ever."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sslzoo.commands import run_lock
from sslzoo.commands.run_lock import LOCK, locked, wait_for_earlier_start
from sslzoo.file_lock import acquire, holder
from sslzoo.run_folder import RunFolder
from tests.commands.command import arguments, run
from tests.commands.test_cluster import ONE_TASK
from tests.commands.test_fit_interrupted import SMALL


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"PATIENCE": 0.0, "PATIENCE_IN_JOB": 0.2, "_INTERVAL": 0.01}.items():
        monkeypatch.setattr(run_lock, name, seconds)


@contextmanager
def held(folder: Path, **about: Any) -> Iterator[None]:
    lock = acquire(folder / LOCK, {"host": "n1", "process": 5, "cluster": None, **about})
    assert lock is not None
    try:
        yield
    finally:
        lock.release()


def test_second_command_in_a_run_directory_is_refused_and_writes_nothing(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = [*arguments(folder, out, "simclr"), *SMALL[:4], "--trainer.limit_train_batches=1"]
    run([*args, "--trainer.max_epochs=1"], tmp_path)
    version = out / "version_0"
    last = version / "checkpoints" / "last.ckpt"
    assert not (version / LOCK).exists()
    again = [*args, "--trainer.max_epochs=2", f"--ckpt_path={last}"]
    with held(version):
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        done = run(again, tmp_path, check=False)
        after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert done.returncode == 1
        said = done.stderr.splitlines()[-1]
        assert re.search(
            rf"by one command at a time, got {version}, which process 5 on n1 is writing; .*"
            rf"remove {version / LOCK}$",
            said,
        ), said
        assert after == before
        run([*again, f"--trainer.default_root_dir={tmp_path / 'other'}"], tmp_path)
    assert (tmp_path / "other" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    run(again, tmp_path)
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert not (version / LOCK).exists()
    by_config = ["--config", str(version / "config.yaml"), f"--ckpt_path={last}"]
    for verb in ("validate", "predict"):
        (version / verb).mkdir()
        (version / verb / "metrics.csv").write_text("val/x\n1\n")
        with held(version / verb):
            done = run([verb, *by_config], tmp_path, check=False)
            assert (done.returncode, done.stderr.count("one command at a time")) == (1, 1)
        assert [path.name for path in (version / verb).iterdir()] == ["metrics.csv"]
        assert (version / verb / "metrics.csv").read_text() == "val/x\n1\n"
    with held(version):  # a run that still goes on
        run(["validate", *by_config, "--trainer.limit_val_batches=1.0"], tmp_path)
    assert "val/knn_top1" in (version / "validate" / "metrics.csv").read_text()
    assert not (version / "validate" / LOCK).exists()


def test_command_that_ends_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE", 20.0)
    lock = acquire(tmp_path / LOCK, {})
    assert lock is not None
    timer = threading.Timer(0.05, lock.release)
    timer.start()
    with locked(RunFolder(tmp_path)):
        assert "process" in holder(tmp_path / LOCK)
    assert list(tmp_path.iterdir()) == []


def test_requeued_job_takes_the_lock_of_its_own_earlier_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ONE_TASK, "SLURM_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    others: list[dict[str, Any]] = [
        {"job": "7", "start": 2},  # a second command of the same script
        {"job": "8", "start": 0},
        {"job": "7", "start": 0, "cluster": "other"},
        {"job": None, "start": 0},
    ]
    for about in others:
        with held(tmp_path, **about):
            wait_for_earlier_start(tmp_path)
            with pytest.raises(ValueError, match="process 5 on n1"), locked(RunFolder(tmp_path)):
                pass
            assert holder(tmp_path / LOCK)["process"] == 5
    with held(tmp_path, job="7", start=1):
        wait_for_earlier_start(tmp_path)
        with (
            pytest.warns(UserWarning, match="process 5 on n1, SLURM job 7, an earlier start"),
            locked(RunFolder(tmp_path)),
        ):
            assert holder(tmp_path / LOCK)["start"] == 2
