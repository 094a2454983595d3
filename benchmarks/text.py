"""Text: train a sentence encoder by the command, and keep its table and its speed.

    python -m benchmarks.text clear --config clear/stsb_small_40ep --data FOLDER
    python -m benchmarks.text clear-no-mlm --config clear/stsb_small_40ep --data FOLDER
        -- --model.mlm_weight=0

`sslzoo fit` runs as a process of its own, whose wall time, CPU time and peak memory are recorded;
Spearman on dev and test of the trained encoder and of its baselines is the run's own
`sentence_table.json`. Afterwards: how many sentences are read and tokenized in a second of one
core, how many are made views of, and how many go through a whole training step. Results go to
benchmarks/results/text.json, one row a name.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.driver import ROOT
from benchmarks.quality import TIMING, build, fit, split_arguments
from benchmarks.worker import versions

RESULT = ROOT / "benchmarks" / "results" / "text.json"
TABLE = "sentence_table.json"


def median_seconds(work: Callable[[], Any], rounds: int) -> float:
    """Of the CPU, all threads together, for one call, after one that does not count."""
    work()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return sorted(times)[len(times) // 2]


def speed(config: dict[str, Any], rounds: int) -> dict[str, float]:
    """Sentences a second of CPU time: read and tokenized, made views of, trained on."""
    data, method = build(config, "data"), build(config, "model")
    data.setup("fit")
    batches = iter(data.train_dataloader())
    raw = next(batches)
    ready = data.train_views(raw, 0)
    optimizer = method.configure_optimizers()

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(list(method.losses(ready).values())).sum().backward()
        optimizer.step()

    count = len(raw.index)
    return {
        "read_per_cpu_second": count / median_seconds(lambda: next(batches), rounds),
        "views_per_cpu_second": count / median_seconds(lambda: data.train_views(raw, 0), rounds),
        "trained_per_cpu_second": count / median_seconds(step, rounds),
    }


def measure(run: Path, config_name: str, rounds: int) -> dict[str, Any]:
    """What goes into the results of a finished run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    timing = json.loads((run / TIMING).read_text())
    return {
        "config": f"configs/{config_name}.yaml",
        "epochs": config["trainer"]["max_epochs"],
        "seeds": [config["seed_everything"]],
        "scores": json.loads((run / TABLE).read_text()),
        **speed(config, rounds),
        **timing,
        "versions": versions(),
    }


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text", description=__doc__)
    parser.add_argument("name", help="of the row, such as clear")
    parser.add_argument("--config", required=True, help="as for `sslzoo fit`")
    parser.add_argument("--data", required=True, help="folder with train.csv, dev.csv, test.csv")
    parser.add_argument("--run", type=Path, help="take this finished run instead of training")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "text")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--rounds", type=int, default=9, help="of the speed")
    parser.epilog = "Arguments after -- go to `sslzoo fit`."
    own, extra = split_arguments(args)
    given = parser.parse_args(own)
    run = given.run
    if run is None:
        folder = (given.runs / given.name).resolve()
        quiet = "--trainer.enable_progress_bar=false"
        run = fit(given.config, str(Path(given.data).resolve()), None, folder, [*extra, quiet])
    kept = json.loads(given.output.read_text()) if given.output.exists() else {}
    kept[given.name] = measure(run, given.config, given.rounds)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    print(given.name, kept[given.name]["scores"], flush=True)


if __name__ == "__main__":
    main()
