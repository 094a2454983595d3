"""Quickstart: run the README's command, time it and keep its table as a result.

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


def main() -> None:
    about = {**provenance(), "versions": versions()}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sslzoo"]
        config = ROOT / "configs" / "quickstart.yaml"
        started = time.perf_counter()
        subprocess.run([*command, "fit", "--config", str(config)], cwd=folder, check=True)
        minutes = (time.perf_counter() - started) / 60
        (table,) = Path(folder).rglob("final_table.json")
        content = json.loads(table.read_text())
    result = {"scores": content["scores"], "k": content["k"], "temperature": content["temperature"]}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**result, "minutes": minutes, **about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
