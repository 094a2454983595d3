"""CMC's core view with 1, 2, 3 and 4 further views, by segmentation of held-out scenes.

    python -m benchmarks.scenes --output SCENES
    python -m benchmarks.views --scenes SCENES

The recipe cmc/nyu_small_core_view_6ep with its first views: L with ab, depth, normals and labels.
The features are those of the tower of L alone, frozen: a grid of positions per held-out scene.
"linear" trains batch norm and a 1x1 convolution on the training scenes, and resizes its logits to
the labels (in training to every other pixel). "kNN" votes among the 20 nearest of 5,000 training
positions (cosine, temperature 0.07), for the first 100 held-out scenes. Both give the mIoU over
classes and the pixel accuracy. "untrained" is the same tower without training,
"supervised" the same tower trained with labels, end to end. Rows
go to benchmarks/results/views.json, each as soon as it is there; rows that stand there are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from benchmarks.driver import ROOT
from benchmarks.scenes import CLASSES
from benchmarks.speed import provenance
from benchmarks.worker import versions
from sslzoo.data.image.multi_view import AlignedFiles
from sslzoo.trust import build

RESULT = ROOT / "benchmarks" / "results" / "views.json"
CONFIG = "configs/cmc/nyu_small_core_view_6ep.yaml"
VIEWS = ("L", "ab", "depth", "normals", "labels")
SEEDS = (0, 1, 2)
VOID = 255
K, TEMPERATURE, BANK, ASKED = 20, 0.07, 5_000, 100  # of the kNN
PROBE_EPOCHS, PROBE_RATE, BATCH = 8, 0.01, 64


def recipe(num_views: int, mode: str, scenes: str) -> dict[str, Any]:
    """The recipe's config with its first `num_views` views."""
    config = yaml.safe_load((ROOT / CONFIG).read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    towers = model["backbone"]["init_args"]
    towers["channels"] = towers["channels"][:num_views]
    towers["towers"] = towers["towers"][:num_views]
    heads = model["projector"]["init_args"]
    heads["heads"] = heads["heads"][:num_views]
    model["mode"] = mode
    data["modalities"] = data["modalities"][: num_views - 1]  # L and ab are one
    data |= {"root": scenes, "num_workers": 0}
    return config


def keep_in_memory() -> None:
    """Read each scene's files once for all epochs and rows of this process."""
    read, kept = AlignedFiles.read, {}

    def remembered(self: AlignedFiles, index: int) -> list[Tensor]:
        parts = []
        for column, modality in enumerate(self.modalities):
            path = self._paths[index, column]
            if (path, modality.folder) not in kept:
                alone = AlignedFiles(self._paths[index : index + 1, [column]], None, [modality])
                kept[path, modality.folder] = read(alone, 0)[0].half()
            parts.append(kept[path, modality.folder].float())
        return parts

    AlignedFiles.read = remembered  # type: ignore[method-assign]


def towers(num_views: int, mode: str, scenes: str, seed: int, epochs: int | None) -> nn.Module:
    """The tower of L after the recipe's run; untrained for 0 epochs."""
    config = recipe(num_views, mode, scenes)
    seed_everything(seed, verbose=False)
    method: Any = build(config["model"], LightningModule, CONFIG)
    epochs = config["trainer"]["max_epochs"] if epochs is None else epochs
    if epochs:
        data = build(config["data"], LightningDataModule, CONFIG)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        quiet["enable_model_summary"] = False
        Trainer(accelerator="cpu", devices=1, max_epochs=epochs, **quiet).fit(method, data)
    return method.backbone.towers[0]


def scenes_of(scenes: str) -> dict[str, tuple[Tensor, Tensor]]:
    """L as the recipe's evaluation gives it, (N, 1, H, W), and labels (N, H, W), of both parts."""
    config = recipe(len(VIEWS), "core_view", scenes)["data"]
    modalities = config["init_args"]["modalities"]
    config["init_args"] |= {"modalities": [modalities[0], modalities[-1]], "size": 64}
    config["init_args"]["resize"] = None
    data: Any = build(config, LightningDataModule, CONFIG)
    data.setup("predict")
    loaders = data.eval_dataloaders()
    found = {}
    for part, loader in (("train", loaders.bank), ("val", loaders.query)):
        whole = torch.cat([data.eval_views(batch).views[0] for batch in loader])
        one_hot = whole[:, 3:]
        labels = torch.where(one_hot.any(1), one_hot.argmax(1), VOID)
        found[part] = whole[:, :1].contiguous(), labels
    return found


@torch.inference_mode()
def maps_of(tower: Any, images: Tensor) -> Tensor:
    """Feature maps (N, D, h, w) of frozen features."""
    tower.eval()
    return torch.cat([tower.forward_map(part) for part in images.split(BATCH)])


def scores(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """MIoU over the classes that occur, and pixel accuracy, in percent."""
    known, C = labels != VOID, len(CLASSES)
    pairs = labels[known] * C + predicted[known]
    confusion = pairs.bincount(minlength=C * C).reshape(C, C).double()  # rows: truth
    hit = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hit
    mean = (hit / union)[union > 0].mean()
    return {"miou": 100 * float(mean), "accuracy": 100 * float(hit.sum() / confusion.sum())}


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
    return F.cross_entropy(logits, labels, ignore_index=VOID)


@torch.inference_mode()
def predict(net: nn.Module, inputs: Tensor, side: int) -> Tensor:
    net.eval()
    parts = [F.interpolate(net(x), (side, side), mode="bilinear") for x in inputs.split(BATCH)]
    return torch.cat([logits.argmax(1) for logits in parts])


def train_pixels(net: nn.Module, inputs: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    """Train logits (B, classes, h, w) of inputs against labels, with AdamW and a cosine."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * (len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(BATCH)[: len(inputs) // BATCH]:
            loss = pixel_loss(net(inputs[rows]), labels[rows][:, ::2, ::2])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def linear(maps: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """A linear classifier of frozen positions: batch norm and a 1x1 convolution."""
    torch.manual_seed(0)
    width, side = maps["train"].shape[1], labels["val"].shape[1]
    head = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, len(CLASSES), 1))
    train_pixels(head, maps["train"].clone(), labels["train"], PROBE_EPOCHS, PROBE_RATE)
    return scores(predict(head, maps["val"], side), labels["val"])


@torch.inference_mode()
def knn(maps: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """Each held-out position's vote among its nearest training positions, at every pixel of it."""
    side, grid = labels["val"].shape[1], maps["val"].shape[2]
    asked = {"train": maps["train"], "val": maps["val"][:ASKED]}
    rows = {n: F.normalize(m.permute(0, 2, 3, 1).flatten(0, 2), dim=1) for n, m in asked.items()}
    middle = torch.arange(grid) * (side // grid) + side // grid // 2
    own = labels["train"][:, middle][:, :, middle].flatten()
    known = (own != VOID).nonzero()[:, 0]
    chosen = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:BANK]]
    bank, classes = rows["train"][chosen], own[chosen]
    votes = []
    for part in rows["val"].split(4096):
        near, index = (part @ bank.T).topk(K)
        weights = (near / TEMPERATURE).exp()
        vote = torch.zeros(len(part), len(CLASSES)).scatter_add_(1, classes[index], weights)
        votes.append(vote.argmax(1))
    predicted = torch.cat(votes).reshape(-1, grid, grid)
    predicted = predicted.repeat_interleave(side // grid, 1).repeat_interleave(side // grid, 2)
    return scores(predicted, labels["val"][:ASKED])


def supervised(scenes: str, parts: Any, seed: int, epochs: int, rate: float) -> dict[str, float]:
    """The tower of L and a 1x1 convolution, trained together with the labels."""
    tower: Any = towers(2, "core_view", scenes, seed, 0)
    head = nn.Conv2d(tower.map_features, len(CLASSES), 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.head = tower, head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.tower.forward_map(x))

    net = Net()
    train_pixels(net, *parts["train"], epochs, rate)
    side = parts["val"][1].shape[1]
    return scores(predict(net, parts["val"][0], side), parts["val"][1])


def rows_of() -> dict[str, tuple[int, str] | None]:
    """Number of views and mode of each row; None: not this method."""
    core = {f"L + {', '.join(VIEWS[1:n])}": (n, "core_view") for n in range(2, len(VIEWS) + 1)}
    full = {f"full graph of {n} views": (n, "full_graph") for n in (4, 5)}
    return {"untrained": None, **core, "supervised": None, **full}


def measure(row: str, seed: int, given: argparse.Namespace, parts: Any) -> dict[str, Any]:
    config = yaml.safe_load((ROOT / CONFIG).read_text())
    start = time.process_time()
    if row == "supervised":
        rate = config["model"]["init_args"]["optimizer"]["init_args"]["lr"]
        epochs = given.epochs or config["trainer"]["max_epochs"]
        found: dict[str, Any] = {"linear": supervised(given.scenes, parts, seed, epochs, rate)}
        return {**found, "cpu_seconds": time.process_time() - start}
    num_views, mode = rows_of()[row] or (2, "core_view")
    epochs = 0 if row == "untrained" else given.epochs
    tower = towers(num_views, mode, given.scenes, seed, epochs)
    trained = time.process_time() - start
    maps = {name: maps_of(tower, images) for name, (images, _) in parts.items()}
    labels = {name: truth for name, (_, truth) in parts.items()}
    found = {"linear": linear(maps, labels), "knn": knn(maps, labels)}
    return {**found, "cpu_seconds": trained}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.views", description=__doc__)
    parser.add_argument("--scenes", required=True, help="folder of benchmarks.scenes")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--only", nargs="+", choices=list(rows_of()), default=list(rows_of()))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=None, help="None: the recipe's")
    given = parser.parse_args(args)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    keep_in_memory()
    parts = scenes_of(given.scenes)
    kept = json.loads(given.output.read_text()) if given.output.exists() else {}
    rows = kept.setdefault("rows", {})
    for seed in given.seeds:
        for row in given.only:
            mine = rows.setdefault(row, {})
            if str(seed) in mine:
                continue
            mine[str(seed)] = measure(row, seed, given, copy.copy(parts))
            kept["about"] = {
                "scenes": {name: len(images) for name, (images, _) in parts.items()},
                "config": CONFIG,
                **provenance(),
                "versions": versions(),
            }
            given.output.write_text(json.dumps(kept, indent=1) + "\n")
            print(row, seed, mine[str(seed)], flush=True)


if __name__ == "__main__":
    main()
