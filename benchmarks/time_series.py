"""Time series: CPC on series of the package aeon, probed for their classes.

    pip install aeon && python -m benchmarks.time_series --folder FOLDER

Series that aeon ships: JapaneseVowels (12 coefficients of speech, of 9 speakers), BasicMotions (6
channels of a watch, 4 motions) and OSULeaf (outlines of leaves as one channel, 6 species), with
their official training and test sets. `sslzoo fit` trains on the training series without their
labels. A linear probe looks at the trained encoder's mean context, the untrained one's, the mean
and standard deviation of the raw channels over time, and the raw values, padded with zeros to the
longest training series. Results: benchmarks/results/time_series.json, one row per set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from benchmarks.audio import statistics
from benchmarks.driver import ROOT
from benchmarks.quality import TIMING, finished, fit, split_arguments
from benchmarks.trajectories import probe
from benchmarks.worker import versions
from sslzoo.batch import Padded
from sslzoo.commands.configs import find_config

RESULT = ROOT / "benchmarks" / "results" / "time_series.json"
ENCODER = "--model.backbone.init_args.encoder.init_args"
SETS = {  # recipe, and options beside it
    "JapaneseVowels": ("cpc/arrays_short_50ep", []),
    "BasicMotions": (
        "cpc/arrays_long_100ep",
        [
            f"{ENCODER}.in_features=6",
            f"{ENCODER}.kernels=[5,4]",
            f"{ENCODER}.strides=[1,2]",
            f"{ENCODER}.paddings=[2,2]",
            "--data.window=80",
            "--data.batch_size=20",
        ],
    ),
    "OSULeaf": ("cpc/arrays_long_100ep", []),
}


def pack(series: Sequence[np.ndarray], labels: Sequence[str], classes: list[str]) -> dict[str, Any]:
    """Arrays of `SequenceArrays` of series (F, T) of several lengths, and their classes."""
    lengths = np.array([x.shape[1] for x in series])
    values = np.zeros((len(series), lengths.max(), series[0].shape[0]), np.float32)
    for row, x in zip(values, series, strict=True):
        row[: x.shape[1]] = np.asarray(x).T
    label = np.array([classes.index(name) for name in labels])
    return {"values": values, "lengths": lengths, "label": label}


def write(folder: Path, name: str) -> None:
    """Write both files of one of aeon's sets."""
    try:
        from aeon.datasets import load_classification
    except ImportError as error:
        raise ImportError(
            "the series are those of aeon, which is not installed; run: pip install aeon"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    classes: list[str] = []
    for split, file in (("train", "train.npz"), ("test", "val.npz")):
        series, labels = load_classification(name, split=split)
        classes = classes or sorted(set(labels))
        np.savez(folder / file, **pack(list(series), list(labels), classes))


def flat(view: Padded, frames: int) -> Tensor:
    """The first `frames` frames as one row, padded with zeros. Shapes: (B, T, F) -> (B, T F)."""
    values = view.values[:, :frames]
    return F.pad(values, (0, 0, 0, frames - values.shape[1])).flatten(1)


def evaluate(run: Path) -> dict[str, Any]:
    """Accuracies of one run's encoder and of the baselines."""
    _, data, model, checkpoint = finished(run)
    frames = data.sets.train.values.shape[1]
    scores = {
        "values": probe(data, model, lambda view: flat(view, frames)),
        "statistics": probe(data, model, statistics),
        "untrained": probe(data, model, "forward"),
    }
    model.load_state_dict(checkpoint["state_dict"])
    return {**scores, "trained": probe(data, model, "forward")}


def measure(folder: Path, name: str, seeds: Sequence[int], extra: Sequence[str]) -> dict[str, Any]:
    """Train with each seed; what goes into the results."""
    recipe, options = SETS[name]
    write(folder, name)
    every, timing = [], []
    for seed in seeds:
        asked = [*options, f"--seed_everything={seed}", "--trainer.accelerator=cpu"]
        asked += ["--trainer.enable_progress_bar=false", *extra]
        run = fit(find_config(recipe), str(folder), None, folder / "runs", asked)
        every.append(evaluate(run))
        timing.append(json.loads((run / TIMING).read_text()))
    sizes = {part: len(np.load(folder / f"{part}.npz")["label"]) for part in ("train", "val")}
    minutes = {key: sum(t[key] for t in timing) for key in ("minutes", "cpu_minutes")}
    return {
        "config": f"configs/{recipe}.yaml",
        "seeds": list(seeds),
        "series": sizes,
        "accuracy": {key: [scores[key] for scores in every] for key in every[0]},
        **timing[0],
        **minutes,
        "versions": versions(),
    }


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_series", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the arrays and runs")
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.epilog = "Arguments after -- go to `sslzoo fit`."
    own, extra = split_arguments(args)
    given = parser.parse_args(own)
    kept = json.loads(given.output.read_text()) if given.output.exists() else {}
    for name in given.only:
        kept[name] = measure(given.folder.resolve() / name, name, given.seeds, extra)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
        print(name, json.dumps(kept[name]["accuracy"]), flush=True)


if __name__ == "__main__":
    main()
