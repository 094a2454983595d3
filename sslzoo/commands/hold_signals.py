"""Signals that SLURM sends while the command is still importing."""

from __future__ import annotations

import os
import signal
import sys


def hold_signals() -> None:
    """Let the signals that requeue a SLURM job wait until the command handles them.

    Their default is to end the process, and torch and Lightning take seconds to import.
    """
    if sys.platform != "win32" and "SLURM_JOB_ID" in os.environ:
        signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)


def release_signals() -> None:
    """Deliver the signals that wait."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)


_NUMBERS = () if sys.platform == "win32" else (signal.SIGUSR1, signal.SIGUSR2)
