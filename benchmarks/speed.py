"""Speed: sslzoo against its peers, row by row, `python -m benchmarks.speed`.

Ours and theirs run in processes of their own, each in its own environment; only one works at a
time. Results go to benchmarks/results/speed.json, and from there into the README by table.py.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.driver import (
    ROOT,
    WARM_UPS,
    Samples,
    SideError,
    Worker,
    bootstrap_bound,
    differences,
    interleave,
)
from benchmarks.rows import ROWS, SIDES, Peer, Row

RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
MEMORY_ROUNDS = 3  # peaks hardly vary
Reply = dict[str, Any]


def has_package(python: str, package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", code], check=False, cwd=ROOT).returncode == 0


def git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def surroundings() -> dict[str, Any]:
    """Where and when: commit, processor, load, date."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", "sslzoo", "benchmarks/*.py"
    )
    return {
        "commit": git("rev-parse", "HEAD") + ("-dirty" if changed else ""),
        "cpu": names[0] if names else "unknown",
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


class Measurement:
    """The run of some rows: its workers and its settings.

    Args:
        peers_python: executable of the peers' environment, or None.
        rounds: of each row.
        smoke: tiny sizes and one warm-up, to see that everything runs.
    """

    def __init__(self, peers_python: str | None, rounds: int, smoke: bool) -> None:
        self.peers_python = peers_python
        self.rounds, self.smoke = rounds, smoke
        self._workers: dict[str, Worker] = {}

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def row(self, row: Row) -> dict[str, dict[str, Any]]:
        """Results of one row, by "row/peer"."""
        about = surroundings()
        results = {}
        present = []
        for peer in row.peers:
            reason = self._missing(peer)
            if reason is None:
                present.append(peer)
            else:
                results[f"{row.name}/{peer.name}"] = self._not_run(row, peer, reason, about)
        for peer in present:
            # One peer at a time, so that a failing one spoils nothing else.
            try:
                measured = self._pair(row, peer)
            except SideError as error:
                self.close()
                reason = str(error).splitlines()[-1]
                measured = {**self._not_run(row, peer, reason, {}), "failed": True}
            results[f"{row.name}/{peer.name}"] = {**measured, **about}
        return results

    def _missing(self, peer: Peer) -> str | None:
        if peer.package is None:
            return None
        if self.peers_python is None:
            return "no environment of peers given"
        if not has_package(self.peers_python, peer.package):
            return f"{peer.package} is not installed in the peers' environment"
        return None

    def _not_run(self, row: Row, peer: Peer, reason: str, about: Reply) -> Reply:
        return {**self._targets(row, peer), "not_run": reason, **about}

    def _targets(self, row: Row, peer: Peer) -> Reply:
        names = {"work": row.work, "against": peer.name, "kind": row.kind, "unit": row.unit}
        return {**names, "at_least": peer.at_least, "aim": peer.aim, "threads": row.threads}

    def _pair(self, row: Row, peer: Peer) -> Reply:
        started = time.perf_counter()
        warm_ups = 1 if self.smoke else WARM_UPS
        rounds = min(self.rounds, MEMORY_ROUNDS) if row.kind == "memory" else self.rounds
        options = {**row.options, **(row.smoke if self.smoke else {})}
        theirs = {**options, **peer.options}
        python = sys.executable if peer.package is None else str(self.peers_python)
        pairs = [("ours", sys.executable, row.ours, options), ("peer", python, peer.side, theirs)]
        if row.kind == "memory":
            turns = [self._fresh(row, *pair[1:]) for pair in pairs]
            warm_ups = 0  # each round is a process's first
        else:
            turns = [self._persistent(row, *pair) for pair in pairs]
        samples = interleave(turns, _cost(row), rounds, warm_ups, row.budget)
        if row.kind != "memory":
            for name, python_, *_ in pairs:
                self._worker(name, python_).leave()
        wrong = differences(samples[0].first, samples[1].first, row.tolerance)
        if wrong and not (self.smoke and row.unit == "view"):  # too few views to average
            raise SideError(f"outputs differ: {'; '.join(wrong)}")
        versions = [self._versions(name, python_) for name, python_, *_ in pairs]
        return {
            **self._targets(row, peer),
            **_summary(row, *samples),
            "warm_ups": warm_ups,
            "options": options,
            "checked": row.tolerance,
            "versions": versions[0],
            "peer_versions": versions[1],
            "took": round(time.perf_counter() - started, 1),
        }

    def _versions(self, name: str, python: str) -> dict[str, str]:
        return self._worker(name, python).versions

    def _worker(self, name: str, python: str) -> Worker:
        key = f"{name} {python}"
        if key not in self._workers:
            self._workers[key] = Worker(python)
        return self._workers[key]

    def _persistent(
        self, row: Row, name: str, python: str, side: str, options: Reply
    ) -> Callable[[], Reply]:
        worker = self._worker(name, python)
        worker.build(f"{SIDES}.{side}", row.threads, options)
        return worker.round

    def _fresh(self, row: Row, python: str, side: str, options: Reply) -> Callable[[], Reply]:
        def once() -> Reply:
            worker = Worker(python)
            try:
                worker.build(f"{SIDES}.{side}", row.threads, options)
                return worker.round()
            finally:
                worker.close()

        return once


def _cost(row: Row) -> Callable[[Reply], float]:
    """What a round's reply cost: MiB, CPU seconds, or seconds a unit of work."""
    if row.kind == "memory":
        return lambda reply: reply["peak_mib"]
    if row.kind == "cpu":
        return lambda reply: reply["facts"]["cpu"]
    return lambda reply: reply["seconds"] / reply["amount"]


def _summary(row: Row, ours: Samples, theirs: Samples) -> Reply:
    """Medians, and the median ratio with its one-sided 95 % bound on the unfavourable side."""
    overhead = row.kind in ("overhead", "cpu")
    both = zip(ours.cost, theirs.cost, strict=True)
    ratios = [a / b if overhead else b / a for a, b in both]
    return {
        "ratio": median(ratios),
        "bound": bootstrap_bound(ratios, upper=overhead),
        "ours": median(ours.cost),
        "theirs": median(theirs.cost),
        "rounds": len(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def merge(path: Path, new: dict[str, dict[str, Any]]) -> None:
    """Write results row by row.

    A row whose peer is missing now keeps what it had; one that failed loses it.
    """
    old = json.loads(path.read_text()) if path.exists() else {}
    for name, result in new.items():
        missing = "not_run" in result and "failed" not in result
        if not missing or "ratio" not in old.get(name, {}):
            old[name] = result
    order = [f"{row.name}/{peer.name}" for row in ROWS for peer in row.peers]
    kept = {name: old[name] for name in order if name in old}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")


def report(name: str, result: dict[str, Any]) -> str:
    if "not_run" in result:
        return f"{name}: not run ({result['not_run']})"
    upper = result["kind"] in ("overhead", "cpu")
    text = f"{result['ratio']:.3g}x, 95 % bound {result['bound']:.3g}"
    wanted = f"{'at most' if upper else 'at least'} {result['at_least']:g}, aim {result['aim']:g}"
    return f"{name}: {text} ({wanted}), {result['rounds']} rounds, {result['took']:.0f} s"


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--peers-python", help="executable of the environment that has the peers")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.name for row in ROWS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; nothing is written")
    parser.add_argument("--output", type=Path, help=f"default {RESULTS.relative_to(ROOT)}")
    chosen = parser.parse_args(args)
    if chosen.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {chosen.rounds}")
    output = chosen.output or (None if chosen.smoke else RESULTS)
    rows = [row for row in ROWS if (row.name in chosen.only if chosen.only else row.by_default)]
    measurement = Measurement(chosen.peers_python, chosen.rounds, chosen.smoke)
    failed = 0
    try:
        for row in rows:
            results = measurement.row(row)
            for name, result in results.items():
                print(report(name, result), flush=True)
                failed += "not_run" in result and "not installed" not in result["not_run"]
            if output is not None:
                merge(output, results)
    finally:
        measurement.close()
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # workers are closed on the way out
    sys.exit(main())
