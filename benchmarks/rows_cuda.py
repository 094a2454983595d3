"""Rows of `--device cuda`: the work of `rows.ROWS` in sizes that fill a GPU.

Targets are those that the project set itself for two cores, where work and peer are the same; they
say nothing of GPUs in particular. The other rows have none.
"""

from __future__ import annotations

from typing import Any, Literal

from benchmarks.rows import Peer, Row

THREADS = 8  # what is made on the host before the clock runs
WORKERS = {"workers": 8}  # of lightly's loaders
BUDGET = 5.0  # seconds a row goes on; a GPU's rounds are short, eight workers' are not
Kind = Literal["speed", "memory"]
Targets = tuple[float | None, float | None]
NONE: Targets = (None, None)


def _row(
    name: str,
    work: str,
    ours: str,
    peers: tuple[Peer, ...],
    unit: str,
    options: dict[str, Any],
    smoke: dict[str, Any],
    tolerance: dict[str, float],
    kind: Literal["speed", "memory", "overhead"] = "speed",
) -> Row:
    memory = kind == "memory"
    return Row(
        name=name + ("_memory" if memory else ""),
        work=work + (": memory" if memory else ""),
        ours=ours,
        peers=peers,
        unit=unit,
        threads=THREADS,
        options=options,
        smoke=smoke,
        kind=kind,
        tolerance=tolerance,
        budget=BUDGET,
    )


def _views(
    size: int, source: int, count: int, batch: int, lightly: Targets, kornia: Targets
) -> Row:
    small = size <= 64
    # Few images a batch, so that every worker has some.
    documented = {**WORKERS, "batch": batch if small else 32}
    return _row(
        f"views{size}",
        f"SimCLR transform, {size} px" + ("" if small else ", with blur"),
        "views:ours",
        (
            Peer("kornia on the GPU", "views:kornia", *kornia, package="kornia"),
            Peer("lightly, 8 workers", "views:lightly", *lightly, "lightly", documented),
        ),
        "view",
        {"size": size, "source": source, "count": count, "batch": batch, "family": "peers"},
        {"count": 64, "batch": 32},
        {"mean": 0.2, "std": 0.2},  # of what random views average to
    )


def _ntxent(n: int, kind: Kind, targets: Targets = NONE, calls: int = 1) -> Row:
    return _row(
        f"ntxent{n}",
        f"NT-Xent forward + backward, n = {n}",
        "ntxent:ours",
        (Peer("lightly", "ntxent:lightly", *targets, package="lightly"),),
        "call",
        {"n": n, "dim": 128, "calls": calls},
        {"n": min(n, 256), "calls": 2},
        {"loss": 1e-4, "gradient": 1e-3},
        kind,
    )


def _dino(kind: Kind, bf16: bool, targets: Targets = NONE) -> Row:
    loss = 0.02 if bf16 else 1e-4
    return _row(
        "dino_bf16" if bf16 else "dino",
        "DINO head + loss, batch 64, 65,536 prototypes, 2 + 8 crops, "
        + ("bf16 autocast" if bf16 else "float32"),
        "dino:ours",
        (Peer("lightly", "dino:lightly", *targets, package="lightly"),),
        "call",
        {
            "batch": 64,
            "views": 10,
            "width": 384,
            "prototypes": 65536,
            "bf16": bf16,
            "calls": 1 if kind == "memory" else 10,
        },
        {"batch": 2, "views": 3, "prototypes": 512},
        {"loss": loss, "parameters": 0.0} | ({} if bf16 else {"gradient": 1e-3}),
        kind,
    )


def _knn(classes: int, targets: Targets) -> Row:
    return _row(
        f"knn{classes}",
        f"kNN, 10k queries on 50k x 512, {classes} classes, k 200",
        "knn:ours",
        (Peer("lightly", "knn:lightly", *targets, package="lightly"),),
        "query",
        {"bank": 50_000, "queries": 10_000, "dim": 512, "classes": classes, "k": 200},
        {"bank": 1500, "queries": 100, "dim": 64},
        {"predicted": 0.002},  # near ties fall either way in float32
    )


def _resnet50(note: str, kind: Kind, theirs_bf16: bool) -> Row:
    return _row(
        "resnet50_bf16" if theirs_bf16 else "resnet50",
        f"ResNet-50 SimCLR step, 224 px, batch 128, {note}",
        "train_ours:resnet_step",
        (
            Peer(
                "lightly",
                "train_lightly:resnet_step",
                package="lightly",
                options={"bf16": theirs_bf16},
            ),
        ),
        "sample",
        {"net": "resnet50", "size": 224, "batch": 128, "bf16": True},
        {"net": "resnet18", "batch": 8, "size": 96},
        {"loss": 0.05, "parameters": 0.0},  # bf16 has 3 digits
        kind,
    )


def _fit(name: str, work: str, peer: Peer, steps: int, kind: Literal["speed", "overhead"]) -> Row:
    return _row(
        name,
        work,
        "train_ours:fit",
        (peer,),
        "sample",
        {"count": 50_000, "batch": 512, "steps": steps},
        {"count": 256, "batch": 16, "steps": 2},
        # Of the round's last step, and a GPU's convolutions do not add up in one order.
        {"loss": 0.02} if kind == "overhead" else {"parameters": 0.0},
        kind,
    )


CUDA_ROWS = (
    _ntxent(8192, "speed", (4.0, 6.7), calls=10),
    _ntxent(8192, "memory", (16.0, 40.0)),
    _ntxent(16384, "speed", calls=3),
    _ntxent(128, "speed", (1.0, 1.5), calls=50),
    _views(32, 32, 4096, 256, lightly=(6.0, 12.0), kornia=(2.0, 4.0)),
    _views(224, 256, 512, 128, lightly=(1.5, 3.0), kornia=(2.0, 4.0)),
    _fit(
        "end_to_end",
        "SimCLR end to end, small net, batch 512, Lightning Trainer",
        Peer("lightly, 8 workers", "train_lightly:fit", 2.5, 4.0, "lightly", WORKERS),
        16,  # each worker's batches twice
        "speed",
    ),
    _resnet50("defaults", "speed", False),
    _resnet50("defaults", "memory", False),
    _dino("speed", False, (1.43, 2.0)),
    _dino("memory", False, (4.0, 8.0)),
    _knn(10, (1.2, 2.0)),
    _knn(1000, (2.5, 6.0)),
    _row(
        "ema",
        "EMA step, ResNet-50 + MLP",
        "ema:ours",
        (
            Peer("lightly", "ema:lightly", 1.3, 2.0, "lightly"),
            Peer("plain loop (solo-learn's formula)", "ema:per_parameter", 1.8, 3.0, "torchvision"),
        ),
        "step",
        {"net": "resnet50", "calls": 20},
        {"net": "resnet18", "calls": 1},
        {"parameters": 0.0, "mean": 1e-6},
    ),
    _fit(
        "fit_overhead",
        "our `fit` over a plain torch loop of the same step, batch 512",
        Peer("plain loop", "train_ours:plain_loop", 1.05, 1.02),
        32,
        "overhead",
    ),
    _dino("speed", True),
    _dino("memory", True),
    _resnet50("both bf16 autocast", "speed", True),
    _resnet50("both bf16 autocast", "memory", True),
)
