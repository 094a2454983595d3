"""Dense: what dense evaluation costs, and what it says of eight methods on drawn images.

    python -m benchmarks.dense shapes --folder FOLDER
    python -m benchmarks.dense scenes --folder FOLDER --scenes SCENES [--methods simmim]
    python -m benchmarks.dense cost --folder FOLDER

`shapes` draws images of 64 pixels with disks, squares, triangles, rings and crosses of random
colors on a striped ground, so that no color tells a class, and their masks; trains MAE, DINO, iBOT,
I-JEPA, DINOv2 and SimMIM on them by their recipes `<method>/folder_small_vit_10ep` with a net of 64
channels and 4 blocks, and DenseCL and VICRegL by `<method>/folder_small_10ep` with a ResNet of half
the width (`small` and `train` have every change: no clipping), and scores the frozen tokens or maps
by linear probe and retrieval, beside the same net untrained, and raw pixels. `scenes` does the same
on the rendered rooms of `benchmarks.scenes`.
`cost` times plain extraction of a ViT-S/16 (random weights, 224 pixels) and the dense protocols on
the same files, each in a process of its own; memory is its largest resident set (Linux alone). A
search in a full memory of patches is timed apart, since few images do not fill it. Results go to
benchmarks/results/dense.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Trainer, seed_everything
from PIL import Image

from benchmarks.driver import ROOT
from benchmarks.quality import build
from benchmarks.worker import versions
from sslzoo.backbones import timm_vit
from sslzoo.callbacks import WeightDecaySchedule
from sslzoo.data import SegmentationFolder
from sslzoo.eval.dense import (
    DenseOptions,
    LinearOptions,
    RawPixels,
    RetrievalOptions,
    dense_metrics,
    feature_map,
    pca_picture,
)
from sslzoo.eval.dense.protocols import DENSE
from sslzoo.eval.dense.retrieval import Memory, retrieve
from sslzoo.eval.features import extract
from sslzoo.eval.knn.search import Bank, on_grid
from sslzoo.optim import CosineSchedule
from sslzoo.runs.provenance import processor
from sslzoo.transforms import mae_views
from sslzoo.transforms.image.normalize import IMAGENET_MEAN, IMAGENET_STD
from sslzoo.trust import read_config

RESULT = ROOT / "benchmarks" / "results" / "dense.json"
CLASSES = ["ground", "disk", "square", "triangle", "ring", "cross"]
SIDE, PATCH = 64, 4
METHODS = ("mae", "dino", "ibot", "ijepa", "dinov2", "simmim", "densecl", "vicregl")
RESNETS = ("densecl", "vicregl")
DECAYED = ("dino", "ibot", "ijepa", "dinov2")  # whose recipes let the weight decay grow
COUNTS = {"train": 1000, "val": 200}
EPOCHS, BATCH = 40, 64
OPTIONS = DenseOptions(LinearOptions(epochs=40, lr=0.01), RetrievalOptions(memory_size=20_480))


class Images(NamedTuple):
    """A folder of images with masks, and what is said of it."""

    root: Path
    folders: dict[str, str]
    classes: list[str]
    about: str


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


def small(method: str, images: Images) -> dict[str, Any]:
    """The recipe with a smaller net, on images of `SIDE` pixels."""
    name = "folder_small_10ep" if method in RESNETS else "folder_small_vit_10ep"
    config = read_config(ROOT / "configs" / method / f"{name}.yaml")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    backbone = model["backbone"].setdefault("init_args", {})
    if method in RESNETS:
        backbone["widths"] = [16, 32, 64, 128]
        for part in ("projector", "dense_projector", "map_projector"):
            if part in model:
                model[part]["init_args"]["sizes"][0] = 128
    elif method == "simmim":  # its relative positions need the size at which it is evaluated
        backbone["img_size"] = data["transform"]["init_args"]["size"] = SIDE
        backbone["options"] |= {"embed_dim": 64, "depth": 4}
    else:
        backbone.update(width=64, depth=4)
    for part in ("decoder", "predictor"):
        if part in model:
            model[part]["init_args"] |= {"token_dim": 64, "width": 48, "depth": 2}
    if method in ("dino", "ibot", "dinov2"):
        model["projector"]["init_args"] |= {"in_dim": 64, "out_dim": 512, "hidden_dim": 256}
    view = {"size": SIDE, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    config["data"] = {
        "class_path": "sslzoo.data.SegmentationFolder",
        "init_args": {
            "root": str(images.root),
            **images.folders,
            "classes": images.classes,
            "transform": data["transform"],
            "batch_size": BATCH,
            "num_workers": 0,
            "seed": 0,
            "eval_view": {"class_path": "sslzoo.transforms.EvalView", "init_args": view},
        },
    }
    return config


def train(model: Any, data: Any, decay: bool) -> float:
    """Train for EPOCHS on the CPU; CPU minutes."""
    callbacks: list[Any] = []
    if decay:
        callbacks = [WeightDecaySchedule(CosineSchedule(0.04, 0.4))]
    start = time.process_time()
    Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=callbacks,
    ).fit(model, datamodule=data)
    return (time.process_time() - start) / 60


def shapes(folder: Path) -> Images:
    """The drawn images."""
    root = write(folder / "shapes", SIDE, COUNTS)
    said = f"{COUNTS['train']} and {COUNTS['val']} drawn images of {SIDE} pixels"
    return Images(root, {}, CLASSES, said)


def scenes(root: Path) -> Images:
    """The rendered rooms."""
    count = {part: len(list((root / part / "image").iterdir())) for part in ("train", "val")}
    said = f"{count['train']} and {count['val']} rendered rooms of {SIDE} pixels"
    classes = (root / "classes.txt").read_text().split()
    return Images(root, {"image_dir": "image", "mask_dir": "labels"}, classes, said)


def compare(
    images: Images,
    methods: list[str],
    rows: dict[str, Any],
    folder: Path,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """MIoU of the methods, their nets untrained, and pixels, beside the `rows` that are there."""
    full = DenseOptions(dataclasses.replace(OPTIONS.linear, loss_scale=None), OPTIONS.knn)
    for method in methods:
        config = small(method, images)
        data = build(config, "data")
        data.setup()
        loaders = data.eval_dataloaders()
        seed_everything(0, verbose=False)
        model = build(config, "model")
        row = {"untrained": dense_metrics(model.encoder(), loaders, options=OPTIONS)}
        row["cpu_minutes"] = train(model, data, method in DECAYED)
        row["trained"] = dense_metrics(model.encoder(), loaders, options=OPTIONS)
        if not rows:
            row["trained, loss of all pixels"] = dense_metrics(
                model.encoder(), loaders, ["linear_segmentation"], full
            )
            rows["pixels"] = {"pixels": dense_metrics(RawPixels(PATCH), loaders, options=OPTIONS)}
        rows[method] = row
        print(method, row, flush=True)
        keep(
            {
                "rows": rows,
                "data": images.about,
                "classes": images.classes,
                "net": f"ViT of 64 channels and 4 blocks, patches of {PATCH} pixels; "
                "of DenseCL and VICRegL a ResNet of 16 to 128 channels, maps of 8 x 8",
                "epochs": EPOCHS,
                "batch_size": BATCH,
                "options": dataclasses.asdict(OPTIONS),
                "seeds": [0],
                **about(),
            }
        )
        shown = loaders.transform(next(iter(loaders.query))).views[0][:6]
        maps = feature_map(model.encoder().eval(), shown)
        folder.mkdir(parents=True, exist_ok=True)
        pca_picture(shown, maps).save(folder / f"pca_{images.root.name}_{method}.png")


COST_COUNTS = {"train": 180, "val": 20}
ROUNDS = 1
QUERIES = 4
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


def search() -> dict[str, float]:
    """CPU time per query image of a search in a memory of the default size, of random rows."""
    torch.set_num_threads(1)
    options, draws = RetrievalOptions(), torch.Generator().manual_seed(0)
    rows = torch.arange(options.memory_size)
    features = torch.randn(options.memory_size, 384, generator=draws)
    fractions = torch.rand(options.memory_size, 21, generator=draws)
    memory = Memory(Bank(on_grid(features), rows, rows), fractions)
    query = torch.randn(QUERIES * 196, 384, generator=draws)
    start = time.process_time()
    retrieve(memory, query, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_ms": 1e3 * (time.process_time() - start) / QUERIES, "peak_mib": peak}


def cost(folder: Path, keep: Callable[[dict[str, Any]], None]) -> None:
    """CPU time and memory of the dense protocols beside plain extraction."""
    write(folder / "large", 256, COST_COUNTS)
    rows: dict[str, list[dict[str, float]]] = {work: [] for work in [*WORK, "search"]}
    command = [sys.executable, "-m", "benchmarks.dense", "one", "--folder", str(folder)]
    images = sum(COST_COUNTS.values())
    for _ in range(ROUNDS):
        for work, found in rows.items():
            done = subprocess.run(
                [*command, "--work", work], cwd=ROOT, stdout=subprocess.PIPE, check=True
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(work, found[-1], flush=True)
    searched = rows.pop("search")
    plain = median(row["cpu_seconds"] for row in rows["extraction"])
    keep(
        {
            "images": COST_COUNTS,
            "rounds": ROUNDS,
            "net": "ViT-S/16 at 224 pixels, random weights, float32, one thread",
            "options": dataclasses.asdict(DenseOptions()),
            "work": {
                work: {
                    "cpu_ms_per_image": 1e3 * median(x["cpu_seconds"] for x in found) / images,
                    "over_extraction": median(x["cpu_seconds"] for x in found) / plain,
                    "peak_mib": max(x["peak_mib"] for x in found),
                }
                for work, found in rows.items()
            },
            f"search_of_{RetrievalOptions().memory_size}_rows": {
                "cpu_ms_per_query_image": median(x["cpu_ms"] for x in searched),
                "peak_mib": max(x["peak_mib"] for x in searched),
            },
            "disk_gb_of_10000_images": (14 * 14 * 384 * 2 + 224 * 224) * 10_000 / 1e9,
            **about(),
        }
    )


def about() -> dict[str, Any]:
    return {"processor": processor(), "cores": os.cpu_count(), "versions": versions()}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense", description=__doc__)
    parser.add_argument("what", choices=("shapes", "scenes", "cost", "one"))
    parser.add_argument("--folder", type=Path, required=True, help="for images and runs")
    parser.add_argument("--scenes", type=Path, help="folder of benchmarks.scenes")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--work", choices=[*WORK, "search"], help="of `one`, which `cost` calls")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(args)
    folder = given.folder.resolve()
    if given.what == "one":
        done = search() if given.work == "search" else one(given.work, folder / "large")
        print(json.dumps(done))
        return

    def keep(found: dict[str, Any]) -> None:
        kept = json.loads(given.output.read_text()) if given.output.exists() else {}
        given.output.write_text(json.dumps({**kept, given.what: found}, indent=1) + "\n")

    if given.what == "cost":
        cost(folder, keep)
    else:
        images = shapes(folder) if given.what == "shapes" else scenes(given.scenes.resolve())
        kept = json.loads(given.output.read_text()) if given.output.exists() else {}
        rows = kept.get(given.what, {}).get("rows", {})
        compare(images, given.methods, rows, folder, keep)


if __name__ == "__main__":
    main()
