"""Equal time, ours: a small recipe as `sslzoo fit` builds it, for a number of steps."""

from __future__ import annotations

import copy
from typing import Any

import lightning
import torch

from benchmarks.quality import build
from benchmarks.sides.equal_time import Features, Order, main, recipe_steps, train
from sslzoo.eval.features import extract


def data_of(order: Order) -> Any:
    config = copy.deepcopy(order["recipe"])
    config["data"]["init_args"] |= {
        "root": order["data"],
        "val_dir": order["val_dir"],
        "num_workers": order["workers"],
    }
    data = build(config, "data")
    data.setup("fit")
    return data


def model_of(order: Order, steps: int) -> Any:
    """The recipe's model, whose prototypes are frozen for the same part of the run."""
    config = copy.deepcopy(order["recipe"])
    options = config["model"]["init_args"]
    part = steps / recipe_steps(order)
    if "freeze_prototypes_steps" in options:
        options["freeze_prototypes_steps"] = round(part * options["freeze_prototypes_steps"])
    if order["method"] == "dino":
        options["freeze_last_layer_epochs"] = part * options.get("freeze_last_layer_epochs", 1.0)
    return build(config, "model")


def features(module: Any, data: Any) -> Features:
    loaders = data.eval_dataloaders()
    parts = []
    for loader in (loaders.bank, loaders.query):
        found = extract(module.encoder(), loader, loaders)
        parts += [found.features, torch.as_tensor(found.label)]
    return tuple(parts)  # type: ignore[return-value]


def side(order: Order) -> dict[str, Any]:
    return train(order, lightning, data_of, model_of, features)


if __name__ == "__main__":
    main(side)
