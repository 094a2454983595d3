"""CLIP and SigLIP on rendered rooms with captions, and the memory of their losses.

    python -m benchmarks.scenes --output SCENES
    python -m benchmarks.image_text train --scenes SCENES --seeds 0 1 2 --weights zoo_weights
    python -m benchmarks.image_text memory

A caption names the colors of walls and floor, and the largest objects with theirs, from the scene's
parameters. Rooms of some pairs of wall and floor color are not trained on: retrieval among the
validation rooms of these pairs is on new compositions. Zero-shot classification is of the floor's
color, by "a room with a <color> floor". Results go to benchmarks/results/image_text.json. With
--weights the image towers of the first seed are kept; their cards have kNN of that color.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Trainer, seed_everything
from torch import Tensor

from benchmarks.card import keep
from benchmarks.driver import ROOT
from benchmarks.quality import TEMPERATURE, K, build, score
from benchmarks.scenes import COLORS
from benchmarks.speed import provenance
from benchmarks.worker import versions
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.zero_shot import class_embeddings, retrieval_recall, zero_shot_topk
from sslzoo.losses import clip_loss, siglip_loss
from sslzoo.trust import read_config
from sslzoo.zoo.preprocess import describe

RESULT = ROOT / "benchmarks" / "results" / "image_text.json"
METHODS = ("clip", "siglip")
OBJECTS, PIXELS = 3, 40  # most objects of a caption, and the least pixels of one
NAMES = tuple(COLORS)


def caption(scene: dict[str, Any]) -> str:
    """Text such as: a room with red walls and a blue floor, a yellow cabinet and a cyan vase."""
    walls, floor = (scene["surfaces"][name]["color"] for name in ("wall", "floor"))
    seen = sorted(scene["objects"], key=lambda o: -o["pixels"])
    things = [f"a {o['color']} {o['class']}" for o in seen[:OBJECTS] if o["pixels"] >= PIXELS]
    last = " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)
    return f"a room with {walls} walls and a {floor} floor" + (f", {last}" if last else "")


def is_new(scene: dict[str, Any]) -> bool:
    """Whether the pair of wall and floor color is held out: 24 of the 144."""
    walls, floor = (NAMES.index(scene["surfaces"][n]["color"]) for n in ("wall", "floor"))
    return (walls + 3 * floor) % 6 == 0


def write_table(scenes: Path, file: Path) -> dict[str, int]:
    """The table of all rooms but those of held-out pairs in training; rooms per split."""
    rows, count = [["path", "caption", "split", "floor", "new"]], {"train": 0, "val": 0}
    for part in count:
        for path in sorted((scenes / part / "scenes").iterdir()):
            scene = json.loads(path.read_text())
            if part == "val" or not is_new(scene):
                image = f"{part}/image/{path.stem}.png"
                floor = scene["surfaces"]["floor"]["color"]
                rows.append([image, caption(scene), part, floor, str(int(is_new(scene)))])
                count[part] += 1
    with file.open("w", newline="") as text:
        csv.writer(text).writerows(rows)
    return count


def recipe(method: str) -> str:
    return f"{method}/folder_small_20ep.yaml"


def configured(method: str, scenes: Path, file: Path, seed: int) -> dict[str, Any]:
    """The small recipe on the table."""
    config = read_config(ROOT / "configs" / recipe(method))
    options = config["data"]["init_args"]
    options.pop("root")
    options |= {"file": str(file), "root": str(scenes), "label_column": "floor"}
    options |= {"num_workers": 0, "seed": seed}
    config["data"]["class_path"] = "sslzoo.data.ImageTextList"
    return config


@torch.no_grad()
def scores(method: Any, data: Any, new: Tensor) -> dict[str, float]:
    """Recalls among all validation rooms and among those of new pairs, and zero-shot top-1."""
    method.eval()
    loaders: EvalLoaders = data.eval_dataloaders()
    assert loaders.query is not None
    batches = [loaders.transform(batch) for batch in loaders.query]
    images = torch.cat([method.embed_image(batch.views[0]) for batch in batches])
    texts = torch.cat([method.embed_texts(batch.views[1]) for batch in batches])
    label = torch.cat([batch.label for batch in batches])
    found = {}
    for name, which in (("all", torch.ones_like(new)), ("new", new)):
        owner = torch.arange(int(which.sum()))
        recalls = retrieval_recall(images[which], texts[which], owner, (1, 5))
        found |= {f"{name}_{key}": value for key, value in recalls.items()}
    classes = class_embeddings(
        method.embed_text, data.tokens, data.classes, ["a room with a {} floor"]
    )
    for name, which in (("all", torch.ones_like(new)), ("new", new)):
        top = zero_shot_topk(images[which], label[which], classes, (1,))
        found[f"{name}_zero_shot"] = top[1]
    method.train()
    return found


def kept(
    method: str, config: dict[str, Any], model: Any, data: Any, given: argparse.Namespace
) -> None:
    """Write the image tower and its card."""
    loaders = data.eval_dataloaders()
    protocol = f"weighted kNN of the floor's color, k {K}, T {TEMPERATURE}, held-out rooms"
    preprocessing, metadata = describe(config["data"])
    assert preprocessing is not None
    given.weights.mkdir(parents=True, exist_ok=True)
    keep(
        given.weights / f"{method}-small_resnet-rooms",
        model.encoder(),
        config["model"]["init_args"]["backbone"],
        {
            "method": config["model"]["class_path"],
            "config": f"configs/{recipe(method)}",
            "data": "rendered rooms",
            "epochs": given.epochs,
            "seeds": [config["data"]["init_args"]["seed"]],
            "extra": [],
            "commit": provenance("cpu")["commit"],
            "protocol": protocol,
        },
        (preprocessing, metadata),
        lambda net: {f"val/knn_top1_k{K}_t{TEMPERATURE}": score(net, loaders)},
    )


def train(given: argparse.Namespace) -> dict[str, Any]:
    """Both methods from every seed, beside their towers untrained."""
    scenes, seeds, epochs, folder = given.scenes, given.seeds, given.epochs, given.folder
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rooms.csv"
    count = write_table(scenes, file)
    new = [json.loads(p.read_text()) for p in sorted((scenes / "val" / "scenes").iterdir())]
    held = torch.tensor([is_new(scene) for scene in new])
    rows: dict[str, Any] = {}
    for name in METHODS:
        for seed in seeds:
            config = configured(name, scenes, file, seed)
            data = build(config, "data")
            data.setup("fit")
            seed_everything(seed, verbose=False)
            method = build(config, "model")
            row = {"untrained": scores(method, data, held)}
            start = time.process_time()
            Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(method, datamodule=data)
            row["cpu_minutes"] = (time.process_time() - start) / 60  # type: ignore[assignment]
            row["trained"] = scores(method, data, held)
            if given.weights is not None and seed == seeds[0]:
                kept(name, config, method, data, given)
            rows[f"{name} seed {seed}"] = row
            print(name, seed, row, flush=True)
    about = {"rooms": count, "new_rooms": int(held.sum()), "epochs": epochs, "seeds": seeds}
    return {"rows": rows, **about}


def plain_clip(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """The form of open_clip's ClipLoss: both matrices of logits at once."""
    logits = log_scale.exp() * images @ texts.T
    own = torch.arange(len(images))
    columns = log_scale.exp() * texts @ images.T
    return (F.cross_entropy(logits, own) + F.cross_entropy(columns, own)) / 2


def plain_siglip(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """The form of open_clip's SigLipLoss without chunks."""
    logits = log_scale.exp() * images @ texts.T + bias
    labels = 2 * torch.eye(len(images)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(images)


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], int]] = {
    "clip": (clip_loss, plain_clip, 1),
    "siglip": (siglip_loss, plain_siglip, 2),
}


def _peak(name: str, ours: bool, count: int, dim: int, result: Any) -> None:
    """Rise of the peak resident memory over what the embeddings take, and the seconds."""
    torch.set_num_threads(2)
    draw = torch.Generator().manual_seed(0)
    leaves = [F.normalize(torch.randn(count, dim, generator=draw), dim=1) for _ in range(2)]
    leaves += [torch.tensor(2.3), torch.tensor(-10.0)][: LOSSES[name][2]]
    loss = LOSSES[name][0 if ours else 1]
    small = [x[:256].clone().requires_grad_() if x.ndim else x for x in leaves]
    loss(*small).backward()
    leaves = [x.requires_grad_() for x in leaves]

    def resident(key: str) -> float:
        status = Path("/proc/self/status").read_text()
        return next(int(r.split()[1]) for r in status.splitlines() if r.startswith(key)) / 1024

    before, start = resident("VmRSS:"), time.perf_counter()
    value = loss(*leaves)
    value.backward()
    seconds = time.perf_counter() - start
    result.put({"mib": resident("VmHWM:") - before, "seconds": seconds, "loss": value.item()})


def memory(counts: dict[str, list[int]], dim: int = 512) -> dict[str, Any]:
    """Memory of forward and backward, each in a process of its own."""
    context, rows = multiprocessing.get_context("spawn"), {}
    for name in METHODS:
        for side, sizes in counts.items():
            for count in sizes:
                queue = context.Queue()
                args = (name, side == "sslzoo", count, dim, queue)
                process = context.Process(target=_peak, args=args)
                process.start()
                rows[f"{name} {side} {count}"] = queue.get()
                process.join()
                print(name, side, count, rows[f"{name} {side} {count}"], flush=True)
    return {"rows": rows, "width": dim}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image_text", description=__doc__)
    parser.add_argument("what", choices=("train", "memory"))
    parser.add_argument("--scenes", type=Path, help="folder of benchmarks.scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "image_text")
    parser.add_argument("--weights", type=Path, help="folder for the encoders; None: not kept")
    parser.add_argument("--ours", type=int, nargs="*", default=[8192, 16384, 32768])
    parser.add_argument("--plain", type=int, nargs="*", default=[8192, 16384])
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(args)
    results = json.loads(given.output.read_text()) if given.output.exists() else {}
    if given.what == "train":
        found = train(given)
    else:
        found = memory({"sslzoo": given.ours, "plain": given.plain})
    results[given.what] = {**found, **provenance("cpu"), "versions": versions()}
    given.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
