"""Audio: CPC on spoken digits, trained by the command, probed for digits and for speakers.

    python -m benchmarks.audio --data FOLDER

FOLDER holds the recordings of the Free Spoken Digit Dataset. On the official split (recordings 0
to 4 of each speaker and digit are the test set) a linear probe and one with a hidden layer look at
the trained encoder's mean context, at the untrained encoder's, and at raw log-mel spectra: their
mean over time, which is pooled as the contexts are, and that with the deviation beside it. The
loader's rate is measured alone, and set beside what training asks of it. Everything goes to
benchmarks/results/audio.json, the encoder with its card to zoo_weights/.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import seed_everything
from torch import Tensor

from benchmarks.card import keep
from benchmarks.driver import ROOT
from benchmarks.quality import TEMPERATURE, TIMING, K, build, fit, score, split_arguments
from benchmarks.worker import versions
from sslzoo.batch import Padded
from sslzoo.commands.configs import find_config
from sslzoo.eval.features import Features, extract
from sslzoo.eval.linear import linear_probe
from sslzoo.eval.mlp_probe import mlp_probe
from sslzoo.transforms import LogMel
from sslzoo.zoo.preprocess import describe

RESULT = ROOT / "benchmarks" / "results" / "audio.json"
TASKS = ("digit", "speaker")
CONFIG = "cpc/folder_small_fsdd_100ep"
NAME = "cpc-gru_small-fsdd"


def statistics(view: Padded) -> Tensor:
    """Mean and deviation over time of log-mel frames (B, T, M) -> (B, 2 M)."""
    x, lengths = view
    count = lengths[:, None].to(x.dtype)
    inside = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
    mean = (x * inside).sum(1) / count
    variance = ((x - mean[:, None]).square() * inside).sum(1) / count
    return torch.cat([mean, variance.sqrt()], dim=1)


def features(data: Any, module: Any, function: Any) -> tuple[Features, Features]:
    """Of training set and test set."""
    loaders = data.eval_dataloaders()
    assert loaders.query is not None
    both = (extract(module, x, loaders, function, "cpu") for x in (loaders.bank, loaders.query))
    train, test = both
    return train, test


def probes(train: Features, test: Features, labels: list[Tensor]) -> dict[str, float]:
    """Accuracies of both probes; labels are those of the training and of the test set."""
    known, asked = labels[0][train.index], labels[1][test.index]
    given = train.features, known, test.features, asked, int(known.max()) + 1
    return {"linear": linear_probe(*given), "hidden": mlp_probe(*given)}


def loader_rate(data: Any, seconds: float) -> float:
    """Windows a second of CPU time that the loader of training gives, on its own."""
    loader, windows, epoch = data.train_dataloader(), 0, 0
    started = time.process_time()
    while time.process_time() - started < seconds:
        loader.sampler.set_epoch(epoch)
        windows += sum(len(batch.index) for batch in loader)
        epoch += 1
    return windows / (time.process_time() - started)


def evaluate(run: Path, seconds: float, weights: Path) -> dict[str, Any]:
    """Score a run, keep its encoder; what goes into the results."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    seed_everything(config["seed_everything"], verbose=False)
    model = build(config, "model")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", "cpu", weights_only=True)
    tasks = {}
    for task in TASKS:  # the same files in the same order, under other labels
        config["data"]["init_args"]["label"] = task
        data = build(config, "data")
        data.setup("fit")
        tasks[task] = [data.sets.train.labels, data.sets.query.labels]
    found = {"untrained": features(data, model, "forward")}
    model.load_state_dict(checkpoint["state_dict"])
    found["trained"] = features(data, model, "forward")
    rate = data.rate
    data.transform = LogMel(rate, bands=40, window=rate // 40, hop=rate // 100)
    found["log_mel_mean_and_deviation"] = features(data, model, statistics)
    found["log_mel_mean"] = tuple(
        part._replace(features=part.features.chunk(2, dim=1)[0])
        for part in found["log_mel_mean_and_deviation"]
    )
    timing = json.loads((run / TIMING).read_text())
    about = {
        "method": config["model"]["class_path"],
        "config": f"configs/{CONFIG}.yaml",
        "data": "FSDD",
        "epochs": checkpoint["epoch"] + 1,
        "seeds": [config["seed_everything"]],
        **timing,
    }
    config["data"]["init_args"]["label"] = TASKS[0]
    digits = build(config, "data")
    digits.setup("fit")
    loaders = digits.eval_dataloaders()
    metric = f"val/knn_top1_k{K}_t{TEMPERATURE}"
    own = keep(
        weights / NAME,
        model.encoder(),
        config["model"]["init_args"]["backbone"],
        {**about, "protocol": f"weighted kNN of digits, k {K}, T {TEMPERATURE}, whole recordings"},
        describe(config["data"]),
        lambda net: {metric: score(net, loaders)},
    )
    windows = (checkpoint["epoch"] + 1) * len(data.train_dataloader()) * data.batch_size
    return {
        **about,
        "train": data.num_samples,
        "test": len(data.sets.query),
        "protocol": "whole recordings; probes on standardized features; test recordings 0 to 4",
        "steps": checkpoint["global_step"],
        "knn_top1_float16": own[metric],
        "accuracy": {
            name: {task: probes(*both, labels) for task, labels in tasks.items()}
            for name, both in found.items()
        },
        "loader_windows_per_cpu_second": loader_rate(data, seconds),
        "training_windows_per_cpu_second": windows / (60 * timing["cpu_minutes"]),
        "versions": versions(),
    }


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audio", description=__doc__)
    parser.add_argument("--data", required=True, help="the folder of the recordings")
    parser.add_argument("--run", type=Path, help="score this finished run instead of training")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "audio")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--weights", type=Path, default=ROOT / "zoo_weights")
    parser.add_argument("--loader-seconds", type=float, default=5.0)
    parser.epilog = "Arguments after -- go to `sslzoo fit`."
    own, extra = split_arguments(args)
    given = parser.parse_args(own)
    run = given.run
    if run is None:
        data = str(Path(given.data).resolve())
        run = fit(find_config(CONFIG), data, None, given.runs.resolve(), extra)
    result = evaluate(run, given.loader_seconds, given.weights)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["accuracy"], indent=1))


if __name__ == "__main__":
    main()
