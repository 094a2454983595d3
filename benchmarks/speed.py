"""Speed: sslzoo against its peers, row by row, `python -m benchmarks.speed`.

Ours and theirs run in processes of their own, each in its own environment; only one works at a
time. Results go to benchmarks/results/speed.json, those of `--device cuda` to speed_cuda.json, and
from there into the README by table.py.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.driver import (
    LONGEST,
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
from benchmarks.rows_cuda import CUDA_ROWS

ALL_ROWS = {"cpu": ROWS, "cuda": CUDA_ROWS}
RESULTS = {
    "cpu": ROOT / "benchmarks" / "results" / "speed.json",
    "cuda": ROOT / "benchmarks" / "results" / "speed_cuda.json",
}
MEMORY_ROUNDS = 3  # peaks hardly vary
PATIENCE = {"cpu": LONGEST, "cuda": 120.0}  # a GPU's rounds are short
Reply = dict[str, Any]


def has_package(python: str, package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", code], check=False, cwd=ROOT).returncode == 0


def git(*args: str) -> str:
    """What git says, nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """SSLZOO_COMMIT where it is set, for copies without a repository; else what git says."""
    given = os.environ.get("SSLZOO_COMMIT")
    if given:
        return given
    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", "sslzoo", "benchmarks/*.py"
    )
    return (git("rev-parse", "HEAD") or "unknown") + ("-dirty" if changed else "")


@cache
def gpu() -> dict[str, str]:
    """The GPU's name and torch's version of CUDA."""
    import torch

    return {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Where and when: commit, processor, GPU if there is one in play, load, date."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    flags = next((line.split() for line in info if line.startswith("flags")), [])
    widest = next(
        (flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), ""
    )
    held = os.environ.get("ATEN_CPU_CAPABILITY")
    return {
        "commit": commit(),
        "cpu": (names[0] if names else "unknown") + (f" held to {held.upper()}" if held else ""),
        "widest": widest,
        "cores": os.cpu_count(),
        **(gpu() if device == "cuda" else {}),
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


class Measurement:
    """The run of some rows: its workers and its settings.

    Args:
        peers_python: executable of the peers' environment, or None.
        rounds: of each row.
        smoke: tiny sizes and one warm-up, to see that everything runs.
        device: where the sides put their tensors, "cpu" or "cuda".
        budget: seconds from now after which no further row begins.
    """

    def __init__(
        self,
        peers_python: str | None,
        rounds: int,
        smoke: bool,
        device: str = "cpu",
        budget: float = float("inf"),
    ) -> None:
        self.peers_python = peers_python
        self.rounds, self.smoke, self.device = rounds, smoke, device
        self._budget, self._started = budget, time.monotonic()
        self._workers: dict[str, Worker] = {}

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def row(self, row: Row) -> Iterator[tuple[str, dict[str, Any]]]:
        """Results of one row as they come, each with its name "row/peer"."""
        for peer in row.peers:
            about = provenance(self.device)
            yield f"{row.name}/{peer.name}", {**self._result(row, peer), **about}

    def _result(self, row: Row, peer: Peer) -> Reply:
        reason = self._missing(peer)
        if reason is not None:
            return self._not_run(row, peer, reason)
        # One peer at a time, so that a failing one spoils nothing else.
        try:
            return self._pair(row, peer)
        except SideError as error:
            self.close()
            return {**self._not_run(row, peer, str(error).splitlines()[-1]), "failed": True}

    def _left(self) -> float:
        return self._started + self._budget - time.monotonic()

    def _missing(self, peer: Peer) -> str | None:
        if self._left() <= 0:
            return f"the budget of {self._budget:g} s was spent"
        if peer.package is None:
            return None
        if self.peers_python is None:
            return "no environment of peers given"
        if not has_package(self.peers_python, peer.package):
            return f"{peer.package} is not installed in the peers' environment"
        return None

    def _not_run(self, row: Row, peer: Peer, reason: str) -> Reply:
        return {**self._targets(row, peer), "not_run": reason}

    def _targets(self, row: Row, peer: Peer) -> Reply:
        names = {"work": row.work, "against": peer.name, "kind": row.kind, "unit": row.unit}
        return {**names, "at_least": peer.at_least, "aim": peer.aim, "threads": row.threads}

    def _pair(self, row: Row, peer: Peer) -> Reply:
        started = time.perf_counter()
        memory = row.kind == "memory"
        fresh = memory and self.device == "cpu"  # a process's peaks depend on what it did before
        warm_ups = 0 if fresh else 1 if self.smoke or memory else WARM_UPS
        rounds = min(self.rounds, MEMORY_ROUNDS) if memory else self.rounds
        options = self._options(row)
        theirs = {**options, **peer.options}
        python = sys.executable if peer.package is None else str(self.peers_python)
        pairs = [("ours", sys.executable, row.ours, options), ("peer", python, peer.side, theirs)]
        if fresh:
            turns = [self._fresh(row, *pair[1:]) for pair in pairs]
        else:
            turns = self._persistent(row, pairs)
        samples = interleave(turns, _cost(row), rounds, warm_ups, min(row.budget, self._left()))
        if not fresh:
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

    def _options(self, row: Row) -> Reply:
        """Of both sides; without a device they stay on the CPU."""
        placed = {} if self.device == "cpu" else {"device": self.device}
        return {**row.options, **(row.smoke if self.smoke else {}), **placed}

    def _versions(self, name: str, python: str) -> dict[str, str]:
        return self._worker(name, python).versions

    def _worker(self, name: str, python: str) -> Worker:
        key = f"{name} {python}"
        if key not in self._workers:
            self._workers[key] = Worker(python, PATIENCE[self.device])
        return self._workers[key]

    def _persistent(
        self, row: Row, pairs: list[tuple[str, str, str, Reply]]
    ) -> list[Callable[[], Reply]]:
        """Both sides, built at the same time: that is not measured."""
        workers = [self._worker(name, python) for name, python, *_ in pairs]
        for worker, (*_, side, options) in zip(workers, pairs, strict=True):
            worker.start(f"{SIDES}.{side}", row.threads, options)
        for worker in workers:
            worker.wait()
        return [worker.round for worker in workers]

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
    """Medians, and the median ratio with its one-sided 95 % bound on the unfavorable side."""
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


def merge(path: Path, new: dict[str, dict[str, Any]], rows: tuple[Row, ...] = ROWS) -> None:
    """Write results among those of a file, in the order of `rows`.

    A row whose peer is missing now keeps what it had; one that failed loses it.
    """
    old = json.loads(path.read_text()) if path.exists() else {}
    for name, result in new.items():
        missing = "not_run" in result and "failed" not in result
        if not missing or "ratio" not in old.get(name, {}):
            old[name] = result
    order = [f"{row.name}/{peer.name}" for row in rows for peer in row.peers]
    kept = {name: old[name] for name in order if name in old}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")


def report(name: str, result: dict[str, Any]) -> str:
    if "not_run" in result:
        return f"{name}: not run ({result['not_run']})"
    upper = result["kind"] in ("overhead", "cpu")
    text = f"{result['ratio']:.3g}x, 95 % bound {result['bound']:.3g}"
    wanted = "no target"
    if result["at_least"] is not None:
        side = "at most" if upper else "at least"
        wanted = f"{side} {result['at_least']:g}, aim {result['aim']:g}"
    return f"{name}: {text} ({wanted}), {result['rounds']} rounds, {result['took']:.0f} s"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _arguments(args: list[str] | None) -> tuple[argparse.Namespace, list[Row]]:
    """The arguments, and the rows that they choose."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--peers-python", help="executable of the environment that has the peers")
    parser.add_argument("--device", choices=list(ALL_ROWS), default="cpu")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows by name")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="seconds; what is left is not run"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; nothing is written")
    parser.add_argument("--output", type=Path, help="default benchmarks/results/speed(_cuda).json")
    chosen = parser.parse_args(args)
    if chosen.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {chosen.rounds}")
    every = {row.name: row for row in ALL_ROWS[chosen.device]}
    unknown = set(chosen.only or []) - set(every)
    if unknown:
        parser.error(f"no row {sorted(unknown)} on {chosen.device}; there are {', '.join(every)}")
    if chosen.device == "cuda" and not _has_cuda():
        parser.error("--device cuda wants a GPU, and torch finds none")
    if chosen.output is None and not chosen.smoke:
        chosen.output = RESULTS[chosen.device]
    if chosen.only:
        return chosen, [row for name, row in every.items() if name in chosen.only]
    return chosen, [row for row in every.values() if row.by_default]


def main(args: list[str] | None = None) -> int:
    chosen, rows = _arguments(args)
    settings = (chosen.peers_python, chosen.rounds, chosen.smoke, chosen.device, chosen.budget)
    measurement = Measurement(*settings)
    failed = 0
    try:
        for row in rows:
            for name, result in measurement.row(row):
                print(report(name, result), flush=True)
                failed += "not_run" in result and "not installed" not in result["not_run"]
                if chosen.output is not None:
                    merge(chosen.output, {name: result}, ALL_ROWS[chosen.device])
    finally:
        measurement.close()
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # workers are closed on the way out
    sys.exit(main())
