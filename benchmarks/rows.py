"""Rows: what is measured, against whom, and what is to be reached (ratios on two cores).

The targets are those that the project set itself before it was written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SIDES = "benchmarks.sides"


@dataclass(frozen=True)
class Peer:
    """The other side of a row.

    Args:
        name: as the table has it.
        side: "module:function" below benchmarks/sides.
        at_least: the ratio that must be reached; for a row of kind "overhead", at most. None: no
            target was set.
        aim: the ratio that is hoped for.
        package: what must be importable; None: it runs in sslzoo's own environment.
        options: beside the row's.
    """

    name: str
    side: str
    at_least: float | None = None
    aim: float | None = None
    package: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table for each peer.

    Args:
        name: for `--only`.
        work: as the table has it.
        ours: "module:function" below benchmarks/sides.
        peers: the other sides.
        unit: of the amount that a round reports.
        threads: of torch, in each process.
        options: of every side.
        smoke: what replaces them in a smoke run.
        kind: "speed": their seconds a unit over ours; "memory": their peak over ours, each round
            in a fresh process, or on a GPU after a warm-up; "overhead": our seconds over theirs;
            "cpu": likewise, of the CPU.
        tolerance: facts of the first rounds that must agree, and by how much.
        budget: seconds after which the row makes no further round.
        by_default: whether a run without `--only` has it.
    """

    name: str
    work: str
    ours: str
    peers: tuple[Peer, ...]
    unit: str
    threads: int
    options: dict[str, Any]
    smoke: dict[str, Any]
    kind: Literal["speed", "memory", "overhead", "cpu"] = "speed"
    tolerance: dict[str, float] = field(default_factory=dict)
    budget: float = 90.0
    by_default: bool = True


def _views(size: int, threads: int, family: str, by_workers: bool = False) -> Row:
    small = size <= 64
    source, count, batch = (32, 256, 256) if small else (256, 256, 32)
    workers = 0 if small else 2
    at_least, aim = ((6.0, 12.0), (2.0, 4.0)) if small else ((1.5, 3.0), (2.0, 4.0))
    if by_workers:
        at_least = (2.0, 3.0)
    lightly = Peer(
        "lightly", "views:lightly", at_least[0], at_least[1], "lightly", {"workers": workers}
    )
    kornia = Peer("kornia", "views:kornia", aim[0], aim[1], "kornia")
    peers = (lightly, kornia) if family == "peers" and not by_workers else (lightly,)
    how = "one thread" if threads == 1 else "with blur, two cores"
    how = "with blur, by two workers" if by_workers else how
    note = "" if family == "peers" else ", the paper's own recipe"
    return Row(
        name=f"views{size}" + ("" if family == "peers" else "_paper") + "_workers" * by_workers,
        work=f"SimCLR transform, {size} px, {how}{note}",
        ours="views:ours",
        peers=peers,
        unit="view",
        threads=threads,
        options={
            "size": size,
            "source": source,
            "count": count,
            "batch": batch,
            "family": family,
            **({"workers": workers} if by_workers else {}),
        },
        smoke={"count": 32, "batch": 32},
        # Of what random views average to; the paper's recipe does not normalize.
        tolerance={"mean": 0.2, "std": 0.2} if family == "peers" else {},
        by_default=small or family == "peers",
    )


def _start(
    name: str,
    work: str,
    arguments: list[str],
    at_least: float | None = None,
    aim: float | None = None,
) -> Row:
    """CPU time of `python` with arguments, beside importing what sslzoo imports."""
    side = "imports:cpu_seconds"
    options = {"arguments": ["-c", "import lightning, torchvision, timm"]}
    peer = Peer("lightning + torchvision + timm", side, at_least, aim, options=options)
    return Row(
        name=name,
        work=f"{work}, CPU time",
        ours=side,
        peers=(peer,),
        unit="start",
        threads=1,
        options={"arguments": arguments},
        smoke={},
        kind="cpu",
    )


def _knn(classes: int, k: int, at_least: float, aim: float) -> Row:
    return Row(
        name=f"knn{classes}" + ("" if k == 200 else f"_k{k}"),
        work=f"kNN, 10k queries on 50k x 512, {classes} classes, k {k}",
        ours="knn:ours",
        peers=(Peer("lightly", "knn:lightly", at_least, aim, "lightly"),),
        unit="query",
        threads=2,
        options={"bank": 50_000, "queries": 10_000, "dim": 512, "classes": classes, "k": k},
        smoke={"bank": 1500, "queries": 100, "dim": 64},
        tolerance={"predicted": 0.002},  # near ties fall either way in float32
        budget=120.0,
        by_default=k == 200,  # lightly's default
    )


def _ntxent(
    n: int, kind: Literal["speed", "memory"], lightly: tuple[float, float], calls: int = 1
) -> Row:
    peers = [Peer("lightly", "ntxent:lightly", *lightly, package="lightly")]
    if n == 128:
        package = "stable_pretraining"
        side = "ntxent:stable_pretraining"
        peers.append(Peer("stable-pretraining", side, *lightly, package=package))
    return Row(
        name=f"ntxent{n}" + ("_memory" if kind == "memory" else ""),
        work=f"NT-Xent forward + backward, n = {n}" + (": memory" if kind == "memory" else ""),
        ours="ntxent:ours",
        peers=tuple(peers),
        unit="call",
        threads=2,
        options={"n": n, "dim": 128, "calls": calls},
        smoke={"n": min(n, 256), "calls": 2},
        kind=kind,
        tolerance={"loss": 1e-4, "gradient": 1e-3},
        budget=240.0 if n > 1000 else 60.0,
    )


def _dino(kind: Literal["speed", "memory"], targets: tuple[float, float]) -> Row:
    return Row(
        name="dino" + ("_memory" if kind == "memory" else ""),
        work="DINO head + loss, batch 16, 65,536 prototypes, 2 + 8 crops"
        + (": memory" if kind == "memory" else ""),
        ours="dino:ours",
        peers=(Peer("lightly", "dino:lightly", *targets, package="lightly"),),
        unit="call",
        threads=2,
        options={"batch": 16, "views": 10, "width": 384, "prototypes": 65536},
        smoke={"batch": 2, "views": 3, "prototypes": 512},
        kind=kind,
        tolerance={"loss": 1e-4, "gradient": 1e-3, "parameters": 0.0},
        budget=120.0,
    )


def _dinov2(kind: Literal["speed", "memory"], targets: tuple[float, float]) -> Row:
    return Row(
        name="dinov2" + ("_memory" if kind == "memory" else ""),
        work="DINOv2 head + losses, batch 8, 65,536 prototypes, 2 + 8 crops, masked patches"
        + (": memory" if kind == "memory" else ""),
        ours="dinov2:ours",
        peers=(Peer("lightly", "dinov2:lightly", *targets, package="lightly"),),
        unit="call",
        threads=2,
        options={"batch": 8, "views": 10, "width": 384, "prototypes": 65536},
        smoke={"batch": 2, "views": 3, "prototypes": 512},
        kind=kind,
        tolerance={"loss": 1e-4, "gradient": 1e-3, "parameters": 0.0},
        budget=120.0,
    )


def _sigreg(kind: Literal["speed", "memory"], targets: tuple[float, float]) -> Row:
    peers = (
        Peer("lightly", "sigreg:lightly", *targets, package="lightly"),
        Peer(
            "stable-pretraining",
            "sigreg:stable_pretraining",
            *targets,
            package="stable_pretraining",
        ),
    )
    return Row(
        name="sigreg" + ("_memory" if kind == "memory" else ""),
        work="SIGReg (LeJEPA), batch 256, 8 views of width 64, 1,024 directions"
        + (": memory" if kind == "memory" else ""),
        ours="sigreg:ours",
        peers=peers,
        unit="call",
        threads=2,
        options={"batch": 256, "views": 8, "dim": 64, "directions": 1024},
        smoke={"batch": 16, "views": 2, "directions": 64},
        kind=kind,
        # Of directions that each side draws by itself.
        tolerance={"loss": 0.3, "gradient": 0.3},
        budget=60.0,
    )


def _pairs(name: str, kind: Literal["speed", "memory"], targets: tuple[float, float]) -> Row:
    return Row(
        name=f"{name.lower()}8192" + ("_memory" if kind == "memory" else ""),
        work=f"{name} loss forward + backward, 8,192 pairs of width 512"
        + (": memory" if kind == "memory" else ""),
        ours="pairs:ours",
        peers=(Peer("open_clip", "pairs:open_clip", *targets, package="open_clip"),),
        unit="call",
        threads=2,
        options={"kind": name.lower(), "n": 8192, "dim": 512},
        smoke={"n": 256, "dim": 64},
        kind=kind,
        tolerance={"loss": 1e-4, "gradient": 1e-3, "scale": 1e-3},
    )


def _step(name: str, note: str, ours: bool, theirs: bool, targets: tuple[float, float]) -> Row:
    options = {"bf16": theirs}
    return Row(
        name=name,
        work=f"ResNet-18 CIFAR step, {note}",
        ours="train_ours:resnet_step",
        peers=(Peer("lightly", "train_lightly:resnet_step", *targets, "lightly", options),),
        unit="sample",
        threads=2,
        options={"net": "resnet18", "size": 32, "batch": 32, "bf16": ours},
        smoke={"batch": 4},
        tolerance={"loss": 0.05 if ours else 1e-3, "parameters": 0.0},  # bf16 has 3 digits
        by_default=not theirs,
    )


TRAIN = {"count": 50_000, "batch": 256, "steps": 3}
TRAIN_SMOKE = {"count": 256, "batch": 16, "steps": 2}


def _end_to_end(
    suffix: str, note: str, options: dict[str, Any], targets: tuple[float, float]
) -> Row:
    return Row(
        name=f"end_to_end{suffix}",
        work=f"SimCLR end to end, small net, Lightning Trainer, {note}",
        ours="train_ours:fit",
        peers=(Peer("lightly", "train_lightly:fit", *targets, "lightly", {"workers": 2}),),
        unit="sample",
        threads=2,
        options=TRAIN | options,
        smoke=TRAIN_SMOKE,
        tolerance={"parameters": 0.0},
        budget=150.0,
        by_default=not suffix,  # without AMX the two rows are one
    )


ROWS = (
    _views(32, 1, "peers"),
    _views(32, 1, "paper"),
    _views(224, 2, "peers"),
    _views(224, 2, "peers", by_workers=True),
    _views(224, 2, "paper"),
    Row(
        name="loader",
        work="Images of 224 px as bytes, 64 a batch, from two workers",
        ours="loader:ours",
        peers=(Peer("torch's DataLoader", "loader:torchs"),),
        unit="image",
        threads=1,
        options={"size": 224, "number": 6400, "batch": 64, "workers": 2},
        smoke={"number": 256},
        tolerance={"images": 0.0, "sum": 0.0},
    ),
    _ntxent(8192, "speed", (4.0, 6.7)),
    _ntxent(8192, "memory", (16.0, 40.0)),
    _ntxent(128, "speed", (1.0, 1.5), calls=100),
    _dino("speed", (1.43, 2.0)),  # a time of 0.7, hoped for 0.5
    _dino("memory", (4.0, 8.0)),
    _dinov2("speed", (1.0, 1.4)),
    _dinov2("memory", (2.0, 4.0)),
    _sigreg("speed", (1.0, 2.0)),
    _sigreg("memory", (2.0, 4.0)),
    _pairs("CLIP", "speed", (1.0, 1.5)),
    _pairs("CLIP", "memory", (4.0, 8.0)),
    _pairs("SigLIP", "speed", (1.0, 1.5)),
    _pairs("SigLIP", "memory", (4.0, 8.0)),
    Row(
        name="wav2vec2",
        work="wav2vec 2.0 forward + backward, 4 blocks of width 256, batch 8 of 2 seconds",
        ours="wav2vec2:ours",
        peers=(Peer("transformers", "wav2vec2:transformers", 1.0, 1.2, "transformers"),),
        unit="sample",
        threads=2,
        options={"batch": 8, "samples": 32_000, "width": 256, "depth": 4},
        smoke={"batch": 2, "samples": 4_000, "width": 64, "depth": 1},
        tolerance={"loss": 0.2, "parameters": 0.0},  # each side draws its own weights
    ),
    _knn(10, 200, 1.2, 2.0),
    _knn(1000, 200, 2.5, 6.0),
    _knn(10, 20, 1.2, 2.0),
    _knn(1000, 20, 2.5, 6.0),
    Row(
        name="ema",
        work="EMA step, ResNet-50 + MLP",
        ours="ema:ours",
        peers=(
            Peer("lightly", "ema:lightly", 1.3, 2.0, "lightly"),
            Peer("plain loop (solo-learn's formula)", "ema:per_parameter", 1.8, 3.0, "torchvision"),
        ),
        unit="step",
        threads=2,
        options={"net": "resnet50", "calls": 20},
        smoke={"net": "resnet18", "calls": 1},
        tolerance={"parameters": 0.0, "mean": 1e-6},
    ),
    _end_to_end("", "own defaults", {}, (2.5, 4.0)),
    _end_to_end("_fp32", "both float32", {"precision": "32-true"}, (1.5, 2.0)),
    _step("resnet18", "defaults", True, False, (1.8, 2.3)),
    _step("resnet18_fp32", "both float32", False, False, (1.0, 1.1)),
    _step("resnet18_bf16", "both bf16 autocast", True, True, (1.0, 1.1)),
    Row(
        name="fit_overhead",
        work="our `fit` over a plain torch loop of the same step",
        ours="train_ours:fit",
        peers=(Peer("plain loop", "train_ours:plain_loop", 1.05, 1.02),),
        unit="sample",
        threads=2,
        options=TRAIN,
        smoke=TRAIN_SMOKE,
        kind="overhead",
        tolerance={"loss": 1e-3},
        budget=120.0,
    ),
    _start(
        "import",
        "importing sslzoo with its methods, data and transforms",
        ["-c", "import sslzoo.methods, sslzoo.data, sslzoo.transforms"],
        *(1.15, 1.05),
    ),
    _start("start_help", "`sslzoo fit --help`", ["-m", "sslzoo", "fit", "--help"]),
    _start(
        "start_step",
        "`sslzoo fit --config quickstart` to the end of its first step",
        [
            *("-m", "sslzoo", "fit", "--config", "quickstart"),
            "--trainer.callbacks+=benchmarks.sides.imports.ExitAfterStep",
        ],
    ),
)
