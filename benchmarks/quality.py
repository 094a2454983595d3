"""Quality: train by the command, score by kNN, export the encoder with its card.

    python -m benchmarks.quality simclr --config simclr/folder_small_10ep --data FOLDER

`sslzoo fit` runs as a process of its own, whose wall time, CPU time and peak memory are recorded in
the run folder; the final encoder, the untrained one and raw pixels are scored with the library's
kNN (pixels once for a folder of images: their scores are kept beside the runs).
Results go to benchmarks/results/quality/<name>.json and weights to zoo_weights/; `--result` names
the file where a method has several nets.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jsonargparse
import torch
import yaml
from lightning import LightningDataModule, LightningModule, seed_everything
from torch import Tensor, nn

from benchmarks.card import Score, keep
from benchmarks.driver import ROOT
from benchmarks.speed import provenance
from benchmarks.worker import versions
from sslzoo.commands.configs import find_config
from sslzoo.eval.features import extract
from sslzoo.eval.knn import knn_top1
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.normalize import IMAGENET_MEAN, IMAGENET_STD

RESULTS = ROOT / "benchmarks" / "results" / "quality"
K, TEMPERATURE = 20, 0.07
TIMING = "fit.json"  # in the run folder


def device() -> str:
    """Where the Trainer puts a run of itself, and scores are made."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fit(config: str, data: str, val_dir: str | None, folder: Path, extra: list[str]) -> Path:
    """Run `sslzoo fit` and time it; the folder of the run.

    The wall time counts everything: start, decoding of the images, online evaluation. The CPU
    time counts all threads and workers, and not what else the machine did meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["fit", "--config", config, "--data.root", data]
    arguments += [] if val_dir is None else ["--data.val_dir", val_dir]
    arguments += [f"--trainer.default_root_dir={folder}", *extra]
    command = [sys.executable, "-m", "sslzoo", *arguments]
    before = set(folder.glob("version_*"))
    about = provenance("cpu" if "--trainer.accelerator=cpu" in extra else device())
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    minutes = (time.perf_counter() - started) / 60
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"sslzoo {' '.join(arguments)} ended with {process.returncode}")
    (run,) = set(folder.glob("version_*")) - before
    cpu_minutes = (usage.ru_utime + usage.ru_stime) / 60
    timing = {"minutes": minutes, "cpu_minutes": cpu_minutes}
    timing |= {"peak_memory_mb": usage.ru_maxrss / 1024, **about}
    timing["extra"] = extra
    (run / TIMING).write_text(json.dumps(timing, indent=1) + "\n")
    return run


def build(config: dict[str, Any], part: str) -> Any:
    """The `model` or `data` of a saved config, as the command builds it."""
    bases = {"model": LightningModule, "data": LightningDataModule}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(bases[part], part, required=True)
    parsed = parser.parse_object({part: copy.deepcopy(config[part])})  # it changes what it gets
    return parser.instantiate(parsed)[part]


class Finished(NamedTuple):
    """A run that has ended.

    Args:
        config: as saved.
        data: its data module, set up.
        model: with the weights that it started from.
        checkpoint: of its last step.
    """

    config: dict[str, Any]
    data: Any
    model: Any
    checkpoint: dict[str, Any]


def finished(run: Path) -> Finished:
    """What stands in a run's folder."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    data = build(config, "data")
    data.setup("validate")
    seed_everything(config["seed_everything"], verbose=False)
    model = build(config, "model")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", "cpu", weights_only=True)
    return Finished(config, data, model, checkpoint)


def score(module: nn.Module, loaders: EvalLoaders, features: str | Callable = "forward") -> float:
    """Weighted-kNN top-1 of all queries against the whole bank, the protocol of the table."""
    if loaders.query is None or loaders.num_classes is None:
        raise ValueError("quality wants data with labels and a validation set, got none")
    module.to(device())
    bank = extract(module, loaders.bank, loaders, features, device())
    query = extract(module, loaders.query, loaders, features, device())
    module.cpu()
    (top1,) = knn_top1(
        *(query.features, cast(Tensor, query.label)),
        *(bank.features, cast(Tensor, bank.label)),
        loaders.num_classes,
        [(K, TEMPERATURE)],
        bank.index,
    )
    return top1


def pixel_scores(model: nn.Module, data: Any) -> dict[str, float]:
    """The floors: pixels in [0, 1], and pixels with ImageNet's mean and deviation, as features."""
    size, resize = data.eval_view.size, data.eval_view.resize
    views = {
        "raw_pixels_knn_top1": EvalView(size, resize),
        "normalized_pixels_knn_top1": EvalView(size, resize, IMAGENET_MEAN, IMAGENET_STD),
    }
    scores = {}
    for name, view in views.items():
        loaders = data.eval_dataloaders()._replace(
            transform=lambda batch, view=view: batch._replace(views=[view(batch.views[0])])
        )
        scores[name] = score(model, loaders, lambda image: image.flatten(1))
    return scores


def kept_pixel_scores(model: nn.Module, data: Any, path: Path) -> dict[str, float]:
    """`pixel_scores`, from the file where they stand there for these images."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    view = data.eval_view
    key = f"{data.root} {len(data.sets.query)} {view.size} {view.resize} {K} {TEMPERATURE}"
    if key not in kept:
        kept[key] = pixel_scores(model, data)
        path.write_text(json.dumps(kept, indent=1) + "\n")
    return kept[key]


def evaluate(
    run: Path, name: str, stem: str, config_name: str, data_name: str, weights: Path
) -> Score:
    """Score a run, export its encoder and card; what goes into the results."""
    config, data, model, checkpoint = finished(run)
    loaders = data.eval_dataloaders()
    pixels = kept_pixel_scores(model, data, run.parents[1] / "pixels.json")
    scores = {**pixels, "untrained_knn_top1": score(model, loaders)}
    model.load_state_dict(checkpoint["state_dict"])
    scores["knn_top1"] = score(model, loaders)
    timing = json.loads((run / TIMING).read_text())
    recipe = Path(find_config(config_name)).resolve()
    result = {
        "name": name,
        "method": config["model"]["class_path"],
        "config": str(recipe.relative_to(ROOT)) if recipe.is_relative_to(ROOT) else config_name,
        "data": data_name,
        "bank": data.num_samples,
        "queries": len(data.sets.query),
        "protocol": f"weighted kNN, k {K}, T {TEMPERATURE}, whole training set, all test images",
        "epochs": checkpoint["epoch"] + 1,
        "seeds": [config["seed_everything"]],
        **scores,
        **timing,
        "versions": versions(),
    }
    encoder = config["model"]["init_args"]["backbone"]
    about = (data.preprocessing(), {})
    metric = f"val/knn_top1_k{K}_t{TEMPERATURE}"
    own = keep(
        weights / stem,
        model.encoder(),
        encoder,
        result,
        about,
        lambda net: {metric: score(net, loaders)},
    )
    result["knn_top1_float16"] = own[metric]
    return result


def split_arguments(args: list[str] | None) -> tuple[list[str], list[str]]:
    """The arguments (None: the process's) before and after the first `--`."""
    args = sys.argv[1:] if args is None else args
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("name", help="of the result, such as simclr")
    parser.add_argument("--config", required=True, help="as for `sslzoo fit`")
    parser.add_argument("--data", required=True, help="folder with train/ and the test images")
    parser.add_argument("--val-dir", default="test")
    parser.add_argument("--data-name", default="CIFAR-10 as JPEG files")
    parser.add_argument("--net", default="small_resnet", help="in the name of the weights")
    parser.add_argument("--result", help="name of its file, other than the method's: dino_vit")
    parser.add_argument("--run", type=Path, help="score this finished run instead of training")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--weights", type=Path, default=ROOT / "zoo_weights")
    parser.epilog = "Arguments after -- go to `sslzoo fit`."
    own, extra = split_arguments(args)
    given = parser.parse_args(own)
    data, run, name = str(Path(given.data).resolve()), given.run, given.result or given.name
    if run is None:
        folder = (given.runs / name).resolve()
        run = fit(given.config, data, given.val_dir, folder, extra)
    about = (name, f"{given.name}-{given.net}-cifar10jpeg", given.config, given.data_name)
    result = evaluate(run, *about, given.weights)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print({key: result[key] for key in result if key.endswith(("top1", "float16", "minutes"))})


if __name__ == "__main__":
    main()
