"""Rounds: one side of a row as its worker process runs it, timed between two messages.

A side is a function `side(rounds, **options)` that builds what it needs and then, for as long as
`rounds` answers True, does one round of work. The worker's parent says when each round starts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

Facts = dict[str, Any]


def memory_kb(field: str) -> int:
    """A line of /proc/self/status: VmRSS (now) or VmHWM (the highest so far)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/self/status has no line {field!r}")
    return int(found[1])


class Meter(Protocol):
    """Time and memory of one round at a time."""

    def start(self) -> None: ...

    def stop(self) -> tuple[float, float]:
        """Seconds since `start`, and MiB by which the peak rose above what was held then."""
        ...


class HostMeter:
    """The clock, and the resident set of this process."""

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
        self._held = memory_kb("VmRSS")
        self._started = time.perf_counter()

    def stop(self) -> tuple[float, float]:
        seconds = time.perf_counter() - self._started
        return seconds, max(0, memory_kb("VmHWM") - self._held) / 1024


class CudaMeter:
    """The clock whenever the GPU has nothing left to do, and the memory of torch's allocator."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda

    def start(self) -> None:
        self._cuda.synchronize()
        self._cuda.reset_peak_memory_stats()
        self._held = self._cuda.memory_allocated()
        self._started = time.perf_counter()

    def stop(self) -> tuple[float, float]:
        self._cuda.synchronize()
        seconds = time.perf_counter() - self._started
        return seconds, max(0, self._cuda.max_memory_allocated() - self._held) / 2**20


def meter_of(device: str) -> Meter:
    """For sides that work on "cpu" or on "cuda"."""
    return CudaMeter() if device == "cuda" else HostMeter()


class Rounds:
    """The worker's end of the conversation with `benchmarks.driver`.

    Args:
        read: one JSON command a line.
        write: one JSON reply a line.

    Attributes:
        meter: of the side that runs; `meter_of` its device.
        number: of the round that runs, from 0.
    """

    def __init__(self, read: TextIO, write: TextIO) -> None:
        self._read, self._write = read, write
        self.meter: Meter = HostMeter()
        self.number = 0

    def send(self, **reply: Any) -> None:
        self._write.write(json.dumps(reply) + "\n")
        self._write.flush()

    def command(self) -> dict[str, Any]:
        line = self._read.readline()
        return json.loads(line) if line else {"do": "quit"}

    def begin(self) -> bool:
        """The side is built: wait for the first round; False means to leave."""
        self.send(ready=True)
        self.number = -1
        return self._wait()

    def end(self, amount: float, **facts: Any) -> bool:
        """A round of `amount` units is done; facts are compared with the other side's."""
        seconds, rise = self.meter.stop()
        self.send(seconds=seconds, amount=amount, peak_mib=rise, facts=facts)
        return self._wait()

    def repeat(self, work: Callable[[], Facts | None], amount: float) -> None:
        """Rounds of one call each; what `work` returns in the first one are its facts."""
        if not self.begin():
            return
        while True:
            facts = work()
            if not self.end(amount, **(facts or {})):
                return

    def _wait(self) -> bool:
        if self.command()["do"] != "round":
            return False
        self.number += 1
        self.meter.start()
        return True
