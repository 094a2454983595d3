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
from typing import Any, TextIO

Facts = dict[str, Any]


def memory_kb(field: str) -> int:
    """A line of /proc/self/status: VmRSS (now) or VmHWM (the highest so far)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/self/status has no line {field!r}")
    return int(found[1])


class Rounds:
    """The worker's end of the conversation with `benchmarks.driver`.

    Args:
        read: one JSON command a line.
        write: one JSON reply a line.
    """

    def __init__(self, read: TextIO, write: TextIO) -> None:
        self._read, self._write = read, write
        self._start = 0.0
        self._rss = 0
        self.number = 0  # of the round that runs, from 0

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
        seconds = time.perf_counter() - self._start
        rise = max(0, memory_kb("VmHWM") - self._rss) / 1024
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
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
        self._rss = memory_kb("VmRSS")
        self._start = time.perf_counter()
        return True
