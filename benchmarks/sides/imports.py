"""Imports: CPU seconds (user and system) of a fresh interpreter that only imports."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.rounds import Rounds


def cpu_seconds(rounds: Rounds, modules: list[str]) -> None:
    """The measured amount stands in for the clock: driver and table see seconds of CPU."""
    if not rounds.begin():
        return
    while True:
        command = [sys.executable, "-c", f"import {', '.join(modules)}"]
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}")
        if not rounds.end(1, cpu=usage.ru_utime + usage.ru_stime):
            return
