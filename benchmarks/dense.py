"""Dense: what dense evaluation costs, and what it says of four methods on drawn shapes.

    python -m benchmarks.dense shapes --folder FOLDER
    python -m benchmarks.dense cost --folder FOLDER

`shapes` draws images of 64 pixels with disks, squares, triangles, rings and crosses of random
colors on a striped ground, so that no color tells a class, and their masks; trains MAE, DINO, iBOT
and I-JEPA on them by their recipes `<method>/folder_small_vit_10ep` with a net of 64 channels and 4
blocks (`small` below has every change), and scores the frozen tokens by linear probe and retrieval,
beside the same net untrained, and raw pixels.
`cost` times plain extraction of a ViT-S/16 (random weights, 224 pixels) and the dense protocols on
the same files, in turns, and says what 10,000 images take by the time per image. Each round is a
process of its own; memory is its largest resident set (Linux alone). Results go to
benchmarks/results/dense.json, each as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from lightning import seed_everything
from PIL import Image

from benchmarks.driver import ROOT
from benchmarks.quality import finished
from benchmarks.worker import versions
from sslzoo.backbones import timm_vit
from sslzoo.data import SegmentationFolder
from sslzoo.eval.dense import (
    DenseOptions,
    LinearOptions,
    RawPixels,
    RetrievalOptions,
    dense_metrics,
)
from sslzoo.eval.dense.protocols import DENSE
from sslzoo.eval.features import extract
from sslzoo.runs.provenance import processor
from sslzoo.transforms import mae_views
from sslzoo.transforms.image.normalize import IMAGENET_MEAN, IMAGENET_STD
from sslzoo.trust import read_config

RESULT = ROOT / "benchmarks" / "results" / "dense.json"
CLASSES = ["ground", "disk", "square", "triangle", "ring", "cross"]
SIDE, PATCH = 64, 4
METHODS = ("mae", "dino", "ibot", "ijepa")
COUNTS = {"train": 1000, "val": 200}
EPOCHS, BATCH = 20, 64
OPTIONS = DenseOptions(LinearOptions(epochs=10), RetrievalOptions())


def shape(kind: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where a shape of radius 1 around the origin is."""
    disk, square = np.hypot(x, y) < 1, np.maximum(abs(x), abs(y)) < 0.85
    return (
        disk,
        square,
        (y < 0.8) & (abs(x) < (y + 1) / 2),
        disk & (np.hypot(x, y) > 0.6),
        square & ((abs(x) < 0.3) | (abs(y) < 0.3)),
    )[kind - 1]


def draw(seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) of three shapes, and its mask (H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    angle, wave = rng.uniform(0, np.pi), rng.uniform(10, 40)
    stripes = np.sin(wave * (x * np.cos(angle) + y * np.sin(angle)))[..., None] * 0.5 + 0.5
    image = stripes * rng.random(3) + (1 - stripes) * rng.random(3)
    mask = np.zeros((side, side), np.uint8)
    for _ in range(3):
        kind, radius = int(rng.integers(1, len(CLASSES))), rng.uniform(0.12, 0.24)
        left, top = rng.uniform(0.15, 0.85, 2)
        inside = shape(kind, (x - left) / radius, (y - top) / radius)
        image[inside], mask[inside] = rng.random(3), kind
    image = image + rng.normal(0, 0.04, image.shape)
    return (image.clip(0, 1) * 255).astype(np.uint8), mask


def write(root: Path, side: int, counts: dict[str, int]) -> Path:
    """Write the images and masks that are missing."""
    for number, (part, count) in enumerate(counts.items()):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True, exist_ok=True)
        for row in range(count):
            paths = [root / part / kind / f"{row:05d}.png" for kind in ("images", "masks")]
            if not all(path.exists() for path in paths):
                for path, array in zip(paths, draw(1_000_000 * number + row, side), strict=True):
                    Image.fromarray(array).save(path)
    return root


def small(method: str, root: Path) -> dict[str, Any]:
    """The recipe with a smaller net, on the drawn shapes."""
    config = read_config(ROOT / "configs" / method / "folder_small_vit_10ep.yaml")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    model["backbone"].setdefault("init_args", {}).update(width=64, depth=4)
    if "decoder" in model:
        model["decoder"]["init_args"] |= {"token_dim": 64, "width": 48, "depth": 2}
    if "predictor" in model:
        model["predictor"]["init_args"] |= {"token_dim": 64, "width": 48, "depth": 2}
    if "projector" in model:
        model["projector"]["init_args"] |= {"in_dim": 64, "out_dim": 512, "hidden_dim": 256}
    model["schedule"]["init_args"]["warmup_epochs"] = 2
    trainer = config["trainer"]
    kept = ("WeightDecaySchedule", "ClipPerParameter")
    trainer["callbacks"] = [x for x in trainer["callbacks"] if x["class_path"].endswith(kept)]
    trainer["callbacks"] += [{"class_path": "sslzoo.callbacks.PCAMaps"}]
    trainer |= {"max_epochs": EPOCHS, "accelerator": "cpu", "enable_progress_bar": False}
    config["data"] = {
        "class_path": "sslzoo.data.SegmentationFolder",
        "init_args": {
            "root": str(root),
            "classes": CLASSES,
            "transform": data["transform"],
            "batch_size": BATCH,
            "num_workers": 0,
            "eval_view": {
                "class_path": "sslzoo.transforms.EvalView",
                "init_args": {"size": SIDE, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
            },
        },
    }
    return config


def train(method: str, root: Path, runs: Path) -> tuple[Path, float]:
    """Train by `sslzoo fit`; the run and its CPU minutes."""
    path = runs / f"{method}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(small(method, root)))
    command = [sys.executable, "-m", "sslzoo", "fit", "--config", str(path)]
    command += [f"--trainer.default_root_dir={runs / method}"]
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"sslzoo fit of {method} ended with {process.returncode}")
    run = max((runs / method).glob("version_*"), key=lambda x: int(x.name.rpartition("_")[2]))
    return run, (usage.ru_utime + usage.ru_stime) / 60


def shapes(folder: Path) -> dict[str, Any]:
    """MIoU of the four methods, their nets untrained, and pixels."""
    root = write(folder / "shapes", SIDE, COUNTS)
    rows: dict[str, Any] = {}
    for method in METHODS:
        run, minutes = train(method, root, folder / "runs")
        _, data, model, checkpoint = finished(run)
        loaders = data.eval_dataloaders()
        untrained = dense_metrics(model.encoder(), loaders, options=OPTIONS)
        model.load_state_dict(checkpoint["state_dict"])
        trained = dense_metrics(model.encoder(), loaders, options=OPTIONS)
        rows[method] = {"trained": trained, "untrained": untrained, "cpu_minutes": minutes}
        print(method, rows[method], flush=True)
        if method == METHODS[0]:
            full = DenseOptions(LinearOptions(epochs=10, loss_scale=None), OPTIONS.knn)
            rows[method]["trained, loss of all pixels"] = dense_metrics(
                model.encoder(), loaders, ["linear_segmentation"], full
            )
            rows["pixels"] = dense_metrics(RawPixels(PATCH), loaders, options=OPTIONS)
    return {
        "rows": rows,
        "data": f"{COUNTS['train']} and {COUNTS['val']} drawn images of {SIDE} pixels",
        "classes": CLASSES,
        "net": f"ViT of 64 channels and 4 blocks, patches of {PATCH} pixels",
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "seeds": [0],
        **about(),
    }


COST_COUNTS = {"train": 540, "val": 60}
ROUNDS = 3
WORK = {"extraction": (), "linear": DENSE[:1], "knn": DENSE[1:], "both": DENSE}


def one(work: str, root: Path) -> dict[str, float]:
    """Time one piece of work in this process."""
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    data = SegmentationFolder(
        str(root), mae_views(224), CLASSES, batch_size=32, eval_batch_size=16, num_workers=0
    )
    data.setup("validate")
    loaders = data.eval_dataloaders()
    vit = timm_vit("vit_small_patch16_224").eval()
    start, wall = time.process_time(), time.perf_counter()
    if work == "extraction":
        for loader in (loaders.bank, loaders.query):
            extract(vit, loader, loaders)
    else:
        dense_metrics(vit, loaders, WORK[work])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = time.process_time() - start, time.perf_counter() - wall
    return {"cpu_seconds": times[0], "seconds": times[1], "peak_mib": peak}


def cost(folder: Path) -> dict[str, Any]:
    """CPU time and memory of the dense protocols beside plain extraction."""
    root = write(folder / "large", 256, COST_COUNTS)
    rows: dict[str, list[dict[str, float]]] = {work: [] for work in WORK}
    command = [sys.executable, "-m", "benchmarks.dense", "one", "--folder", str(folder)]
    for _ in range(ROUNDS):
        for work, found in rows.items():
            done = subprocess.run([*command, "--work", work], cwd=ROOT, capture_output=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(work, found[-1], flush=True)
    plain = median(row["cpu_seconds"] for row in rows["extraction"])
    images = sum(COST_COUNTS.values())
    bytes_per_image = 14 * 14 * 384 * 2 + 224 * 224
    return {
        "images": COST_COUNTS,
        "rounds": ROUNDS,
        "net": "ViT-S/16 at 224 pixels, random weights, float32, one thread",
        "options": "the defaults of DenseOptions",
        "root": str(root.name),
        "work": {
            work: {
                "cpu_ms_per_image": 1e3 * median(row["cpu_seconds"] for row in found) / images,
                "over_extraction": median(row["cpu_seconds"] for row in found) / plain,
                "peak_mib": max(row["peak_mib"] for row in found),
            }
            for work, found in rows.items()
        },
        "disk_gb_of_10000_images": bytes_per_image * 10_000 / 1e9,
        **about(),
    }


def about() -> dict[str, Any]:
    return {"processor": processor(), "cores": os.cpu_count(), "versions": versions()}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense", description=__doc__)
    parser.add_argument("what", choices=("shapes", "cost", "one"))
    parser.add_argument("--folder", type=Path, required=True, help="for images and runs")
    parser.add_argument("--work", choices=list(WORK), help="of `one`, which `cost` calls")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(args)
    folder = given.folder.resolve()
    if given.what == "one":
        print(json.dumps(one(given.work, folder / "large")))
        return
    found = (shapes if given.what == "shapes" else cost)(folder)
    kept = json.loads(given.output.read_text()) if given.output.exists() else {}
    given.output.write_text(json.dumps({**kept, given.what: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
