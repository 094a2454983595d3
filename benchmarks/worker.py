"""A worker: one process of one Python that runs the sides it is told to, `python -m`.

Its first stdout speaks JSON with the driver; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import os
import platform
import sys
import traceback
import warnings
from typing import Any

from benchmarks.rounds import Rounds, meter_of

PACKAGES = (
    *("torch", "torchvision", "lightning", "pytorch-lightning", "timm", "pillow", "lightly"),
    *("kornia", "stable-pretraining"),
)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    rounds = Rounds(sys.stdin, reply)
    rounds.send(versions=versions())
    while (order := rounds.command())["do"] == "run":
        try:
            _run(rounds, order)
            rounds.send(left=True)
        except Exception as error:
            traceback.print_exc()
            rounds.send(error=f"{type(error).__name__}: {error}")


def _run(rounds: Rounds, order: dict[str, Any]) -> None:
    import torch

    device = order["options"].get("device", "cpu")
    torch.set_num_threads(order["threads"])
    rounds.meter = meter_of(device)
    module, _, name = order["side"].partition(":")
    getattr(importlib.import_module(module), name)(rounds, **order["options"])
    if device == "cuda":  # the other process shares its memory
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
