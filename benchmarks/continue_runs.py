"""Runs that go on from given weights: row 0, the last row and the cost, for a file of results."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from benchmarks.quality import TIMING


def rows_of(run: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of the start weights (row 0) and of the last evaluation of a run."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    with (run / "metrics.csv").open() as file:
        for line in csv.DictReader(file):
            found = {
                name.removeprefix("val/"): float(value)
                for name, value in line.items()
                if value and name.startswith("val/") and not name.endswith("_change")
            }
            if found:
                first, last = first or found, {**last, **found}
    return first, last


def keep(path: Path, key: str, about: dict[str, Any], run: Path, more: dict[str, Any]) -> None:
    """Add a run to a file of results, which has the settings once and a row per run."""
    kept = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    start, last = rows_of(run)
    timing = json.loads((run / TIMING).read_text())
    cost = {
        name: timing[name] for name in ("minutes", "cpu_minutes", "load_before", "date", "commit")
    }
    place = {name: timing[name] for name in ("commit", "cpu", "cores")}
    kept |= {**about, **place}
    kept["runs"][key] = {"start": start, "last": last, **more, **cost}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(key, kept["runs"][key], flush=True)
