"""A worker: one process of one Python that runs the sides it is told to, `python -m`.

Its first stdout speaks JSON with the driver; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
import traceback
import warnings

from benchmarks.rounds import Rounds

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
            import torch

            torch.set_num_threads(order["threads"])
            module, _, name = order["side"].partition(":")
            getattr(importlib.import_module(module), name)(rounds, **order["options"])
            rounds.send(left=True)
        except Exception as error:
            traceback.print_exc()
            rounds.send(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
