"""Text: train a sentence encoder by the command, and keep its table and its speed.

    python -m benchmarks.text clear --config clear/stsb_small_40ep --data FOLDER
    python -m benchmarks.text clear-no-mlm --config clear/stsb_small_40ep --data FOLDER
        -- --model.mlm_weight=0

`sslzoo fit` runs as a process of its own, whose wall time, CPU time and peak memory are recorded;
Spearman on dev and test of the trained encoder and of its baselines is the run's own
`sentence_table.json`. Afterwards: how many sentences are read and tokenized in a second of one
core, how many are made views of, and how many go through a whole training step. Results go to
benchmarks/results/text.json, one row a name, and the encoder with its card to zoo_weights/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.card import keep
from benchmarks.driver import ROOT
from benchmarks.quality import TIMING, build, finished, fit, split_arguments
from benchmarks.worker import versions
from sslzoo.eval.features import extract
from sslzoo.eval.similarity import pair_spearman
from sslzoo.optim import RunLength
from sslzoo.zoo.preprocess import describe

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
    method.run_length = RunLength(1000, 100)  # of any length
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


def correlations(data: Any, encoder: nn.Module) -> dict[str, float]:
    """Spearman of an encoder's cosines on each set of scored pairs."""
    scores = {}
    for name, loaders in data.similarity_dataloaders().items():
        found = extract(encoder, loaders.bank, loaders, "forward", "cpu")
        assert found.label is not None
        scores[f"spearman_{name}"] = pair_spearman(found.features, found.label.double())
    return scores


def measure(run: Path, config_name: str, rounds: int, stem: Path) -> dict[str, Any]:
    """Keep the encoder of a finished run; what goes into the results."""
    config, data, model, checkpoint = finished(run)
    about = {
        "method": config["model"]["class_path"],
        "config": f"configs/{config_name}.yaml",
        "data": "STS-B",
        "epochs": config["trainer"]["max_epochs"],
        "seeds": [config["seed_everything"]],
        "protocol": "Spearman's correlation of cosines with the scores of pairs",
        **json.loads((run / TIMING).read_text()),
    }
    model.load_state_dict(checkpoint["state_dict"])
    backbone, described = config["model"]["init_args"]["backbone"], describe(config["data"])
    own = keep(
        stem, model.encoder(), backbone, about, described, lambda net: correlations(data, net)
    )
    return {
        **about,
        "scores": json.loads((run / TABLE).read_text()),
        "float16": own,
        **speed(config, rounds),
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
    parser.add_argument("--weights", type=Path, default=ROOT / "zoo_weights")
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
    stem = given.weights / f"{given.name}-small_transformer-stsb"
    kept[given.name] = measure(run, given.config, given.rounds, stem)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    print(given.name, kept[given.name]["scores"], flush=True)


if __name__ == "__main__":
    main()
