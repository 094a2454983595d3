"""Quickstart: run the README's command with three seeds, time it and keep its table as a result.

python -m benchmarks.quickstart
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.driver import ROOT
from benchmarks.speed import provenance
from benchmarks.worker import versions

RESULT = ROOT / "benchmarks" / "results" / "quickstart.json"


SEEDS = (0, 1, 2)


def run(seed: int) -> tuple[float, dict]:
    """Seconds of the command, and the table that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        config = ROOT / "configs" / "quickstart.yaml"
        command = [sys.executable, "-m", "sslzoo", "fit", "--config", str(config)]
        started = time.perf_counter()
        subprocess.run([*command, f"--seed_everything={seed}"], cwd=folder, check=True)
        seconds = time.perf_counter() - started
        (table,) = Path(folder).rglob("final_table.json")
        return seconds, json.loads(table.read_text())


def main() -> None:
    about = {**provenance(), "versions": versions()}
    runs = [run(seed) for seed in SEEDS]
    first = runs[0][1]
    result = {
        "seeds": list(SEEDS),
        "seconds": [seconds for seconds, _ in runs],
        "scores": {
            row: {name: [table["scores"][row][name] for _, table in runs] for name in scores}
            for row, scores in first["scores"].items()
        },
        **{name: first[name] for name in ("k", "temperature", "labels_per_class", "changed")},
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**result, **about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
