"""Trajectories: CPC on what a random policy observes, probed for a constant of the physics.

    pip install 'sslzoo[rl]' && python -m benchmarks.trajectories --folder FOLDER

Records episodes of gymnasium's Pendulum-v1 under four gravities, which no observation (cosine, sine
and speed of the angle) shows; trains by `sslzoo fit --config cpc/arrays_small_30ep`; and asks a
linear probe for the gravity: of the trained encoder's mean context, of the untrained one's, and
of mean and deviation of the raw observations. What gravity does shows only in how a state follows
from the one before, which is what CPC has to learn. Results: benchmarks/results/trajectories.json;
the encoder with its card goes to zoo_weights/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.card import keep
from benchmarks.driver import ROOT
from benchmarks.quality import TIMING, finished, fit, split_arguments
from benchmarks.worker import versions
from sslzoo.commands.configs import find_config
from sslzoo.eval.features import extract
from sslzoo.eval.linear import linear_probe
from sslzoo.zoo.preprocess import describe

RESULT = ROOT / "benchmarks" / "results" / "trajectories.json"
CONFIG = "cpc/arrays_small_30ep"
NAME = "cpc-gru_small-pendulum"
GRAVITIES = (4.0, 7.0, 10.0, 13.0)  # m / s^2
EPISODES = {"train": 800, "val": 400}
STEPS = 100


def record(gravity: float, steps: int, seed: int) -> np.ndarray:
    """(steps, 3) float32 observations of one episode under uniformly random torque."""
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(
            "trajectories are recorded in gymnasium, which is not installed; run: "
            "pip install 'sslzoo[rl]'"
        ) from error
    environment = gymnasium.make("Pendulum-v1", g=gravity, max_episode_steps=steps)
    environment.action_space.seed(seed)
    observation, _ = environment.reset(seed=seed)
    seen = [observation]
    for _ in range(steps - 1):
        observation, *_ = environment.step(environment.action_space.sample())
        seen.append(observation)
    environment.close()
    return np.stack(seen).astype(np.float32)


def write(folder: Path) -> None:
    """Both files, gravities in turn, unless they are there; no episode has another's seed."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for name, episodes in EPISODES.items():
        path = folder / f"{name}.npz"
        label = np.arange(episodes) % len(GRAVITIES)
        if not path.exists():
            values = [record(GRAVITIES[g], STEPS, first + i) for i, g in enumerate(label)]
            np.savez(path, values=np.stack(values), label=label)
        first += episodes


def statistics(values: Tensor) -> Tensor:
    """(B, T, F) -> (B, 2 F): mean and deviation over time."""
    return torch.cat([values.mean(1), values.std(1)], dim=1)


def probe(data: Any, module: Any, function: Any) -> float:
    """Accuracy on the validation episodes."""
    loaders = data.eval_dataloaders()
    train, test = (
        extract(module, loader, loaders, function, "cpu")
        for loader in (loaders.bank, loaders.query)
    )
    given = train.features, train.label, test.features, test.label
    return linear_probe(*given, loaders.num_classes)


def evaluate(run: Path, weights: Path) -> dict[str, Any]:
    """Score a run, keep its encoder; what goes into the results."""
    config, data, model, checkpoint = finished(run)
    scores = {"raw": probe(data, model, statistics), "untrained": probe(data, model, "forward")}
    model.load_state_dict(checkpoint["state_dict"])
    scores["trained"] = probe(data, model, "forward")
    about = {
        "method": config["model"]["class_path"],
        "config": f"configs/{CONFIG}.yaml",
        "data": f"Pendulum-v1, random policy, {STEPS} steps, gravities {list(GRAVITIES)}",
        "epochs": checkpoint["epoch"] + 1,
        "seeds": [config["seed_everything"]],
        "protocol": "linear probe for the gravity, 400 other episodes",
        **json.loads((run / TIMING).read_text()),
    }
    backbone, described = config["model"]["init_args"]["backbone"], describe(config["data"])
    own = keep(
        *(weights / NAME, model.encoder(), backbone, about, described),
        lambda net: {"linear_top1": probe(data, net, "forward")},
    )
    return {
        **about,
        "episodes": EPISODES,
        "accuracy": scores,
        "float16": own,
        "versions": versions(),
    }


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trajectories", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of train.npz and val.npz")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "trajectories")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--weights", type=Path, default=ROOT / "zoo_weights")
    parser.epilog = "Arguments after -- go to `sslzoo fit`."
    own, extra = split_arguments(args)
    given = parser.parse_args(own)
    write(given.folder)
    data = str(given.folder.resolve())
    run = fit(find_config(CONFIG), data, None, given.runs.resolve(), extra)
    result = evaluate(run, given.weights)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["accuracy"], indent=1))


if __name__ == "__main__":
    main()
