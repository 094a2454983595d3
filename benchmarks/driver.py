"""Driver: worker processes held still with SIGSTOP while another one works, and their rounds.

Only the standard library: this file knows nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WARM_UPS = 3
LONGEST = 900.0  # seconds of silence after which a worker is given up
RESAMPLES = 10_000


class SideError(Exception):
    """A side could not be built or run; the message says why."""


class Worker:
    """A process of its own group, stopped except while it is spoken to.

    Args:
        python: the executable, ours or that of the peers' environment.
        longest: seconds of silence after which it is given up.
    """

    def __init__(self, python: str, longest: float = LONGEST) -> None:
        self._longest = longest
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-u", "-m", "benchmarks.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,
        )
        self._running = True
        self.versions: dict[str, str] = self._reply()["versions"]

    def build(self, side: str, threads: int, options: dict[str, Any]) -> None:
        self.start(side, threads, options)
        self.wait()

    def start(self, side: str, threads: int, options: dict[str, Any]) -> None:
        """Begin to build a side; others may do so meanwhile, `wait` ends it."""
        self._send(do="run", side=side, threads=threads, options=options)

    def wait(self) -> None:
        """Until what was started is built."""
        self._reply()

    def round(self) -> dict[str, Any]:
        """One round: seconds, amount, peak_mib and facts."""
        return self._ask(do="round")

    def leave(self) -> None:
        """The side that runs ends, and what it holds is freed."""
        self._ask(do="leave")

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _signal(self, number: signal.Signals) -> None:
        self._running = number == signal.SIGCONT
        os.killpg(self._process.pid, number)

    def _ask(self, **order: Any) -> dict[str, Any]:
        self._send(**order)
        return self._reply()

    def _send(self, **order: Any) -> None:
        assert self._process.stdin is not None
        if not self._running:
            self._signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self._longest)[0]:
            raise SideError(f"no answer for {self._longest:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._stderr.seek(0)
            raise SideError(f"the worker died: {self._stderr.read()[-2000:]}")
        self._signal(signal.SIGSTOP)
        reply = json.loads(line)
        if "error" in reply:
            raise SideError(reply["error"])
        return reply


class Samples(NamedTuple):
    """Rounds of one side.

    Args:
        cost: seconds a unit of work, or peak MiB, one a round.
        first: the facts of the first round.
    """

    cost: list[float]
    first: dict[str, Any]


def interleave(
    sides: Sequence[Callable[[], dict[str, Any]]],
    cost: Callable[[dict[str, Any]], float],
    rounds: int,
    warm_ups: int,
    budget: float,
) -> list[Samples]:
    """Rounds A, B, ..., A, B, ...; the warm-ups are not among the samples.

    Args:
        sides: each call is one round.
        cost: of a round's reply.
        rounds: wanted.
        warm_ups: rounds before them.
        budget: seconds after which no further round begins (three are made in any case).
    """
    costs: list[list[float]] = [[] for _ in sides]
    first: list[dict[str, Any]] = [{} for _ in sides]
    started = time.perf_counter()
    for number in range(warm_ups + rounds):
        if number >= warm_ups + 3 and time.perf_counter() - started > budget:
            break
        for place, side in enumerate(sides):
            reply = side()
            if number == 0:
                first[place] = reply["facts"]
            if number >= warm_ups:
                costs[place].append(cost(reply))
    return [Samples(c, f) for c, f in zip(costs, first, strict=True)]


def bootstrap_bound(ratios: Sequence[float], upper: bool = False) -> float:
    """The median's one-sided 95 % bound by the percentile bootstrap, of fixed seed."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[int(RESAMPLES * (0.95 if upper else 0.05))]


def differences(
    ours: dict[str, Any], theirs: dict[str, Any], tolerance: dict[str, float]
) -> list[str]:
    """Facts that disagree: a list in more than that fraction of its items, a number by that much.

    A number's tolerance is relative to it where it is larger than 1. A fact that one side lacks
    disagrees.
    """
    found = []
    for name, allowed in tolerance.items():
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None:
            found.append(f"{name}: {a} against {b}")
        elif isinstance(a, list):
            wrong = sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
            if wrong > allowed * len(a):
                found.append(f"{name}: {wrong} of {len(a)} differ")
        elif not abs(a - b) <= allowed * max(1.0, abs(b)):
            found.append(f"{name}: {a:.6g} against {b:.6g}, allowed {allowed:g}")
    return found
