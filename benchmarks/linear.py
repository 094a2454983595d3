"""Linear: the linear probe of encoders of the zoo, added to their rows of the quality table.

    python -m benchmarks.linear --data FOLDER --names lejepa dinov2

FOLDER has the images as `benchmarks.quality` wants them, and a name is that of a result in
benchmarks/results/quality whose encoder is in zoo_weights. The probe is `eval.linear_probe` on the
features of the file's weights: standardized, its L2 weight chosen on held-out training images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

import sslzoo
from benchmarks.driver import ROOT
from benchmarks.quality import build
from sslzoo.atomic_write import atomic_write
from sslzoo.eval.features import extract
from sslzoo.eval.linear import linear_probe
from sslzoo.trust import read_config

RESULTS = ROOT / "benchmarks" / "results" / "quality"
WEIGHTS = ROOT / "zoo_weights"


def linear_top1(name: str, data_folder: str) -> float:
    """Top-1 of the test images by a linear probe fitted to all training images."""
    files = list(WEIGHTS.glob(f"{name}-small_*-cifar10jpeg.safetensors"))
    if len(files) != 1:
        have = sorted(file.name for file in WEIGHTS.glob("*-cifar10jpeg.safetensors"))
        raise SystemExit(f"--names must have one encoder each in {WEIGHTS}, got {name}: {have}")
    encoder = sslzoo.load(str(files[0]))
    result = json.loads((RESULTS / f"{name}.json").read_text())
    config = read_config(ROOT / result["config"])
    config["data"]["init_args"] |= {"root": data_folder, "val_dir": "test", "num_workers": 0}
    data = build(config, "data")
    data.setup("validate")
    loaders = data.eval_dataloaders()
    bank, query = (
        extract(encoder, part, loaders, "forward", "cpu") for part in (loaders.bank, loaders.query)
    )
    labels = cast(Tensor, bank.label), cast(Tensor, query.label)
    return linear_probe(bank.features, labels[0], query.features, labels[1], data.num_classes)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=__doc__)
    parser.add_argument("--data", required=True, help="folder with train/ and test/")
    parser.add_argument("--names", nargs="+", required=True, help="results of the quality table")
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    for name in given.names:
        found = linear_top1(name, str(Path(given.data).resolve()))
        file = RESULTS / f"{name}.json"
        result = json.loads(file.read_text()) | {"linear_top1": found}
        atomic_write(file, json.dumps(result, indent=1) + "\n")
        print(name, found, flush=True)


if __name__ == "__main__":
    main()
