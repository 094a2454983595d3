"""Start-up: CPU seconds (user and system) of a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

from lightning import Callback

from benchmarks.driver import ROOT
from benchmarks.rounds import Rounds


class ExitAfterStep(Callback):
    """Ends the process after the first step of training."""

    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)


def cpu_seconds(rounds: Rounds, arguments: list[str]) -> None:
    """Of `python` with these arguments, in an empty folder.

    The measured amount stands in for the clock: driver and table see seconds of CPU.
    """
    if not rounds.begin():
        return
    while True:
        with tempfile.TemporaryDirectory() as folder:  # where a run writes
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            assert process.stderr is not None
            said = process.stderr.read().decode()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{arguments} ended with {process.returncode}: {said}")
        if not rounds.end(1, cpu=usage.ru_utime + usage.ru_stime):
            return
