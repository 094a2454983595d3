"""Masked: what MAE's pre-training is worth, by linear probe and by a short fine-tuning.

    python -m benchmarks.masked --data FOLDER --run RUN

RUN is one of mae/folder_small_vit_10ep (`python -m benchmarks.quality` makes it). Nothing asks
MAE's features to be linearly separable, so its paper judges it by fine-tuning. Here both, beside
the same net untrained: a linear probe of the class token and of the patches' mean, on all images;
and fine-tuning by mae/folder_small_vit_fine_tune_20ep, from the run and from random weights, on
10 % of the labels, whose accuracy is the run's own `val/top1` after the last epoch. Results go to
benchmarks/results/masked.json, each as soon as it is there; what stands there is kept unless
`--only` names it. Arguments after `--` go to `sslzoo fit`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.driver import ROOT
from benchmarks.quality import TIMING, device, finished, fit, split_arguments
from benchmarks.semi_supervised import last, outcome
from benchmarks.speed import provenance
from benchmarks.worker import versions
from sslzoo.eval.features import Features, extract
from sslzoo.eval.linear import linear_probe

RESULT = ROOT / "benchmarks" / "results" / "masked.json"
TUNE = "mae/folder_small_vit_fine_tune_20ep"
FRACTION = 0.1
L2 = (1e-4, 1e-3, 1e-2, 1e-1)
PROBE, STARTS = "linear probe", {"fine-tuned": None, "from scratch": "random"}
ROWS = [PROBE, *STARTS]


def pools(vit: Any, images: Tensor) -> dict[str, Tensor]:
    """What a probe may look at, by name. (B, C, H, W) -> (B, D) each."""
    tokens = vit.forward_tokens(images)
    return {"class token": tokens[:, 0], "mean of patches": tokens[:, 1:].mean(dim=1)}


def probes(vit: Any, loaders: Any) -> dict[str, float]:
    """Test accuracy of a linear probe of each pool."""
    names: list[str] = []

    def features(images: Tensor) -> Tensor:
        found = pools(vit, images)
        names[:] = list(found)
        return torch.cat(list(found.values()), dim=1)

    vit.to(device())
    train, test = (
        extract(vit, x, loaders, features, device()) for x in (loaders.bank, loaders.query)
    )
    parts = zip(*(both.features.chunk(len(names), dim=1) for both in (train, test)), strict=True)
    return {
        name: _probe(train._replace(features=known), test._replace(features=asked), loaders)
        for name, (known, asked) in zip(names, parts, strict=True)
    }


def _probe(train: Features, test: Features, loaders: Any) -> float:
    known, asked = cast(Tensor, train.label), cast(Tensor, test.label)
    return linear_probe(
        train.features, known, test.features, asked, loaders.num_classes, L2, max_steps=300
    )


def probe(run: Path) -> dict[str, Any]:
    """Accuracies of the trained net, the untrained one and of pixels."""
    config, data, model, checkpoint = finished(run)
    loaders = data.eval_dataloaders()
    accuracy = {"untrained": probes(model.encoder(), loaders)}
    model.load_state_dict(checkpoint["state_dict"])
    accuracy["trained"] = probes(model.encoder(), loaders)
    train, test = (
        extract(model, x, loaders, lambda image: image.flatten(1), device())
        for x in (loaders.bank, loaders.query)
    )
    accuracy["pixels"] = {"pixels": _probe(train, test, loaders)}
    return {
        "accuracy": accuracy,
        "protocol": f"L-BFGS on standardized features of all images, L2 of {list(L2)}",
        "epochs": checkpoint["epoch"] + 1,
        "seeds": [config["seed_everything"]],
        "cpu_minutes": json.loads((run / TIMING).read_text())["cpu_minutes"],
        **provenance(device()),
        "versions": versions(),
    }


def tune(row: str, data: str, val_dir: str, run: Path, runs: Path, more: list[str]) -> Any:
    """Fine-tune from the run, or from random weights; what goes into the results."""
    extra = [f"--model.weights={STARTS[row] or last(run.resolve())}"]
    extra += [f"--data.train_fraction={FRACTION}", "--trainer.enable_progress_bar=false"]
    own = fit(TUNE, data, val_dir, (runs / row.replace(" ", "_")).resolve(), [*extra, *more])
    return {**outcome(own, TUNE), "labels": FRACTION}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masked", description=__doc__)
    parser.add_argument("--data", required=True, help="folder with train/ and the test images")
    parser.add_argument("--val-dir", default="test")
    parser.add_argument("--run", type=Path, required=True, help="of mae/folder_small_vit_10ep")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "masked")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[])
    own, more = split_arguments(args)
    given = parser.parse_args(own)
    kept = json.loads(given.output.read_text()) if given.output.exists() else {}
    data = str(Path(given.data).resolve())
    for row in given.only or [row for row in ROWS if row not in kept]:
        if row == PROBE:
            kept[row] = probe(given.run)
        else:
            kept[row] = tune(row, data, given.val_dir, given.run, given.runs, more)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        ordered = {name: kept[name] for name in ROWS if name in kept}
        given.output.write_text(json.dumps(ordered, indent=1) + "\n")
        print(row, kept[row].get("top1", kept[row].get("accuracy")), flush=True)


if __name__ == "__main__":
    main()
