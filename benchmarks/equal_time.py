"""Equal time: which library's encoder is better after as many minutes of training?

    python -m benchmarks.equal_time --data FOLDER --peers-python peers/bin/python
    python -m benchmarks.equal_time ... --methods simclr --sides ours --seeds 0 --minutes 2
    python -m benchmarks.equal_time ... --methods simclr --checks 20     # and the time to kNN 0.60
    python -m benchmarks.equal_time ... --trials                         # only times, side by side
    python -m benchmarks.equal_time ... --steps 3                # does it run? writes nothing

Every method that lightly has too is trained by sslzoo's small recipe ("ours"), by lightly's
documented parts in their defaults ("lightly"), and by these with the recipe's temperature or weight
in the loss ("lightly-recipe"): the same net and its initialization, optimizer, schedule of the rate
and batch, float32. The warm-up, and the time for which SwAV's and DINO's prototypes are frozen, are
the recipe's fractions of the run. Each run is a process of its own. The clock is CPU time, of all
threads, or wall time, and starts before the data are read; a short trial beforehand, which does not
count, says how many steps the time gives, and schedules end with them. `--trials` makes only the
trials, both sides of a method at once, for a machine that will have other work later: runs take as
many steps as they would have then. Both sides' features are scored by sslzoo's weighted kNN and
linear probe.

Results go to benchmarks/results/equal_time.json, each as soon as it is there; a run that stands
there is not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.driver import ROOT
from benchmarks.quality import TEMPERATURE, K
from benchmarks.sides.equal_time import CLOCKS, OUTCOME, Features, Order
from benchmarks.speed import has_package, provenance
from sslzoo.atomic_write import atomic_write
from sslzoo.eval.knn import knn_top1
from sslzoo.eval.linear import linear_probe
from sslzoo.trust import read_config

RESULT = ROOT / "benchmarks" / "results" / "equal_time.json"
TRIALS = RESULT.with_name("equal_time_trials.json")
METHODS = ("simclr", "moco", "byol", "simsiam", "barlow_twins", "vicreg")
METHODS += ("swav", "nnclr", "dino", "mae", "tico", "dcl")
SIDES = ("ours", "lightly", "lightly-recipe")
SHOWN = ("steps", "epochs", "seconds", "loss", "knn_top1", "linear_top1")
GOAL = 0.60  # of kNN, for the time that it takes


def config_of(method: str) -> str:
    return f"configs/{method}/folder_small_{'vit_' if method == 'mae' else ''}10ep.yaml"


def recipe_of(method: str) -> dict[str, Any]:
    """The small recipe, with the warm-up as a fraction of the run, whatever its length."""
    recipe = copy.deepcopy(read_config(ROOT / config_of(method)))
    schedule = recipe["model"]["init_args"]["schedule"]["init_args"]
    epochs = recipe["trainer"]["max_epochs"]
    schedule["warmup_fraction"] = schedule.pop("warmup_epochs") / epochs
    return recipe


def order_of(given: argparse.Namespace, method: str, side: str, seed: int, folder: str) -> Order:
    """What the process of a side is told, as JSON.

    `data` has the folders `train` and `val_dir`; `minutes` are of the clock; `steps` replace them;
    features are extracted after each of `checks` parts of the run.
    """
    names = ("minutes", "clock", "threads", "workers", "checks", "steps", "val_dir")
    return {
        "method": method,
        "side": side,
        "seed": seed,
        "folder": folder,
        "data": str(Path(given.data).resolve()),
        "recipe": recipe_of(method),
        "trial": _read(TRIALS).get(clock_of(given), {}).get(method, {}).get(side),
        "only_trial": given.trials,
        **{name: getattr(given, name) for name in names},
    }


def score(features: Features) -> float:
    """Top-1 of the queries by weighted kNN in the bank."""
    bank, bank_labels, query, labels = features
    count, index = int(bank_labels.max()) + 1, torch.arange(len(bank))
    k = min(K, len(bank))
    return knn_top1(query, labels, bank, bank_labels, count, [(k, TEMPERATURE)], index)[0]


def linear(features: Features) -> float:
    """Top-1 of the queries by a linear probe fitted to the bank."""
    bank, bank_labels, query, labels = features
    return linear_probe(bank, bank_labels, query, labels, int(bank_labels.max()) + 1)


def minutes_to(goal: float, curve: list[dict[str, float]]) -> float | None:
    """Minutes of the clock until kNN reached `goal`, between two checks linearly; None: never."""
    before = None
    for point in curve:
        if point["knn_top1"] >= goal:
            if before is None:
                return point["seconds"] / 60
            rise = point["knn_top1"] - before["knn_top1"]
            part = (goal - before["knn_top1"]) / rise
            return (before["seconds"] + part * (point["seconds"] - before["seconds"])) / 60
        before = point
    return None


def start(order: Order, python: str) -> subprocess.Popen[str]:
    """The process that carries out an order."""
    module = f"benchmarks.sides.equal_{order['side'].partition('-')[0]}"
    process = subprocess.Popen(
        [python, "-m", module],
        stdin=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(order["threads"])},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(order))
    process.stdin.close()
    return process


def finish(order: Order, process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the process left."""
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return json.loads((Path(order["folder"]) / OUTCOME).read_text())  # type: ignore[no-any-return]


def run(order: Order, python: str) -> dict[str, Any]:
    """Train in a process of its own, and score what it leaves."""
    folder = Path(order["folder"])
    outcome = finish(order, start(order, python))
    curve = []
    for check in outcome.pop("checks"):
        features = torch.load(folder / check["file"], weights_only=True)
        curve.append({"seconds": check["seconds"], "knn_top1": score(features)})
    batch = order["recipe"]["data"]["init_args"]["batch_size"]
    return {
        **outcome,
        "epochs": outcome["steps"] * batch / len(features[0]),
        "knn_top1": curve[-1]["knn_top1"],
        "linear_top1": linear(features),
        **({"curve": curve, "minutes_to_goal": minutes_to(GOAL, curve)} if curve[1:] else {}),
        "goal": GOAL,
    }


def clock_of(given: argparse.Namespace) -> str:
    """Trials of one clock are compared with each other."""
    clock = "CPU minutes" if given.clock == "cpu" else "minutes"
    threads = f"{given.threads} thread" + "s" * (given.threads > 1)
    workers = f", {given.workers} workers" if given.workers else ""
    return f"{clock}, {threads}{workers}"


def setting_of(given: argparse.Namespace) -> str:
    """Runs of one setting are compared with each other."""
    return f"{given.minutes:g} {clock_of(given)}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_time", description=__doc__)
    parser.add_argument("--data", required=True, help="folder with train/ and the test images")
    parser.add_argument("--val-dir", default="test")
    parser.add_argument("--peers-python", help="executable of the environment that has lightly")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES[:2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=20.0, help="of the clock, per run")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="of each side's loader")
    parser.add_argument("--checks", type=int, default=0, help="kNN after so many parts of a run")
    parser.add_argument("--trials", action="store_true", help="only time the sides, all at once")
    parser.add_argument("--steps", type=int, help="instead of minutes; writes nothing")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(args)
    for name, least in (("threads", 1), ("workers", 0), ("checks", 0), ("steps", 1)):
        value = getattr(given, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    if given.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {given.minutes}")
    if given.clock == "cpu" and given.workers:
        parser.error(
            f"--workers must be 0 with the CPU clock, which does not see their time, got "
            f"{given.workers}: use --clock wall"
        )
    for part in ("train", given.val_dir):
        if not (Path(given.data) / part).is_dir():
            parser.error(f"--data must be a folder with {part}/, got {given.data}")
    if set(given.sides) != {"ours"} and not (
        given.peers_python and has_package(given.peers_python, "lightly")
    ):
        parser.error(
            "--peers-python must be the executable of an environment that has lightly, got "
            f"{given.peers_python}: or use --sides ours"
        )
    return given


def main(args: list[str] | None = None) -> None:
    given = parse(args)
    for method in given.methods:
        if given.trials:
            try_sides(given, method)
            continue
        for seed in given.seeds:
            for side in given.sides:
                make(given, method, side, seed)


def python_of(given: argparse.Namespace, side: str) -> str:
    return sys.executable if side == "ours" else given.peers_python  # type: ignore[no-any-return]


def try_sides(given: argparse.Namespace, method: str) -> None:
    """The trials of a method's sides, all at once, so that other work slows each alike."""
    about = provenance()
    with tempfile.TemporaryDirectory() as folder:
        begun = []
        for side in given.sides:
            place = Path(folder) / side
            place.mkdir()
            order = {**order_of(given, method, side, given.seeds[0], str(place)), "trial": None}
            begun.append((order, start(order, python_of(given, side))))
        found = {order["side"]: {**finish(order, process), **about} for order, process in begun}
    seconds = {side: trial["trial_seconds_per_step"] for side, trial in found.items()}
    print(method, "seconds per step:", seconds, flush=True)
    kept = _read(TRIALS)
    kept.setdefault(clock_of(given), {}).setdefault(method, {}).update(found)
    TRIALS.write_text(json.dumps(kept, indent=1) + "\n")


def make(given: argparse.Namespace, method: str, side: str, seed: int) -> None:
    """One run, unless it stands in the results, and its place there."""

    def rows() -> tuple[dict[str, Any], dict[str, Any]]:  # read anew: runs may be side by side
        kept = _read(given.output)
        by = kept.setdefault(setting_of(given), {}).setdefault(method, {})
        return kept, by.setdefault(side, {})

    if str(seed) in rows()[1] and given.steps is None:
        return
    about = provenance()
    with tempfile.TemporaryDirectory() as folder:
        order = order_of(given, method, side, seed, folder)
        found = {**run(order, python_of(given, side)), "config": config_of(method), **about}
    print(method, side, seed, {name: found[name] for name in SHOWN}, flush=True)
    if given.steps is None:
        kept, own = rows()
        own[str(seed)] = found
        given.output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(given.output, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
