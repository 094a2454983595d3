"""Equal steps: what in SimCLR's small recipe makes the difference to lightly's parts?

    python -m benchmarks.equal_steps --data FOLDER --changes none head views+forwards --seeds 0

Each run has the same number of steps, by default those of one epoch, in float32 on one thread, with
the whole schedule in it, and changes one thing of the recipe or several. "views" are torchvision's
on PIL images, as lightly's SimCLRTransform for 32 pixels composes them (half the color jitter, no
blur, ImageNet's normalization). "forwards" gives every view a forward of its own, so that batch
norm sees one view alone. "head" has torch's initial weights, and an offset in its last batch norm.
"net" has torch's initial weights. "temperature" is 0.1. For lightly's parts after as many steps:
`python -m benchmarks.equal_time --sides lightly-recipe --methods simclr --steps 195`.

Scores are sslzoo's weighted kNN and linear probe. Results go to
benchmarks/results/equal_steps.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from benchmarks.driver import ROOT
from benchmarks.equal_time import linear, recipe_of, score
from benchmarks.quality import build
from benchmarks.sides import equal_ours
from benchmarks.sides.equal_time import Features, Order, train
from benchmarks.speed import provenance
from sslzoo.atomic_write import atomic_write
from sslzoo.batch import Batch
from sslzoo.losses import nt_xent
from sslzoo.transforms.image.normalize import IMAGENET_MEAN, IMAGENET_STD

RESULT = ROOT / "benchmarks" / "results" / "equal_steps.json"
CHANGES = ("none", "views", "forwards", "head", "net", "temperature")
EPOCH = 195  # steps of CIFAR-10 in batches of 256
NORMALIZE = T.Normalize(IMAGENET_MEAN, IMAGENET_STD)
HEAD = {
    "class_path": "sslzoo.heads.MLP",
    "init_args": {"sizes": [256, 256, 128], "bias": False, "last_bias": False, "last_norm": "full"},
}


class TwoViews(ImageFolder):
    """Samples (first view, second view, index), by torchvision on PIL images."""

    def __init__(self, root: str) -> None:
        jitter = T.ColorJitter(0.4, 0.4, 0.4, 0.1)
        steps = [T.RandomResizedCrop(32, (0.08, 1.0)), T.RandomHorizontalFlip()]
        steps += [T.RandomApply([jitter], 0.8), T.RandomGrayscale(0.2), T.ToTensor(), NORMALIZE]
        super().__init__(root, T.Compose(steps))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        path, _ = self.samples[index]
        image = self.loader(path)
        assert self.transform is not None
        return self.transform(image), self.transform(image), index

    @staticmethod
    def batch(samples: list[tuple[Tensor, Tensor, int]]) -> Batch:
        first, second, index = zip(*samples, strict=True)
        return Batch([torch.stack(first), torch.stack(second)], torch.tensor(index))


def separate_forwards(method: Any) -> None:
    """Let the method embed its views one after the other."""

    def losses(batch: Batch) -> dict[str, Tensor]:
        first, second = (method.projector(method.backbone(view)) for view in batch.views)
        return {"nt_xent": nt_xent(first, second, method.temperature, method.normalize)}

    method.losses = losses


@torch.no_grad()
def normalized_features(net: nn.Module, data: Path, val_dir: str) -> Features:
    """Features of both sets on images with ImageNet's normalization."""
    parts: list[Tensor] = []
    for name in ("train", val_dir):
        images = ImageFolder(str(data / name), T.Compose([T.ToTensor(), NORMALIZE]))
        found = [(net(x), label) for x, label in DataLoader(images, 500)]
        parts += [torch.cat(column) for column in zip(*found, strict=True)]
    return tuple(parts)  # type: ignore[return-value]


def run(given: argparse.Namespace, changes: set[str], seed: int) -> dict[str, Any]:
    """Train with some changes, and score."""
    recipe = recipe_of("simclr")
    options, batch = recipe["model"]["init_args"], recipe["data"]["init_args"]["batch_size"]
    if "head" in changes:
        options["projector"] = HEAD
    if "temperature" in changes:
        options["temperature"] = 0.1

    def data(order: Order) -> Any:
        if "views" not in changes:
            return equal_ours.data_of(order)
        images = TwoViews(str(given.data / "train"))
        return DataLoader(images, batch, shuffle=True, drop_last=True, collate_fn=TwoViews.batch)

    def model(order: Order, steps: int) -> Any:
        method = build(recipe, "model")
        if "net" in changes:
            for module in method.backbone.modules():
                if isinstance(module, nn.Conv2d):
                    module.reset_parameters()
        if "forwards" in changes:
            separate_forwards(method)
        return method

    def features(method: Any, source: Any) -> Features:
        if "views" not in changes:
            return equal_ours.features(method, source)
        return normalized_features(method.encoder().eval(), given.data, given.val_dir)

    order: Order = {"seed": seed, "steps": given.steps, "recipe": recipe, "data": str(given.data)}
    order |= {"val_dir": given.val_dir, "workers": 0, "threads": 1, "checks": 0, "clock": "cpu"}
    order |= {"trial": None, "only_trial": False}
    with tempfile.TemporaryDirectory() as folder:
        found = train({**order, "folder": folder}, lightning, data, model, features)
        scored = torch.load(Path(folder) / found.pop("checks")[-1]["file"], weights_only=True)
    return {**found, "knn_top1": score(scored), "linear_top1": linear(scored), **provenance("cpu")}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_steps", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and the test")
    parser.add_argument("--val-dir", default="test")
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), help="joined by +")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=EPOCH)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(args)
    unknown = {part for changes in given.changes for part in changes.split("+")} - set(CHANGES)
    if unknown:
        parser.error(f"--changes must be of {', '.join(CHANGES)}, got {', '.join(sorted(unknown))}")
    for seed in given.seeds:
        for changes in given.changes:
            found = run(given, set(changes.split("+")), seed)
            print(changes, seed, found, flush=True)
            result = json.loads(given.output.read_text()) if given.output.exists() else {}
            result.setdefault(changes, {})[str(seed)] = found
            atomic_write(given.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
