"""Equal time, ours: a small recipe as `sslzoo fit` builds it, for a number of steps."""

from __future__ import annotations

import copy
from typing import Any

import lightning
import torch

from benchmarks.quality import build
from benchmarks.sides.equal_time import Features, Order, main, train
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


def features(module: Any, data: Any) -> Features:
    loaders = data.eval_dataloaders()
    parts = []
    for loader in (loaders.bank, loaders.query):
        found = extract(module.encoder(), loader, loaders)
        parts += [found.features, torch.as_tensor(found.label)]
    return tuple(parts)  # type: ignore[return-value]


def side(order: Order) -> dict[str, Any]:
    return train(order, lightning, data_of, lambda o, _: build(o["recipe"], "model"), features)


if __name__ == "__main__":
    main(side)
