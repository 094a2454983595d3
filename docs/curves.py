"""Draw docs/guides/curves/*.svg: for each family of methods a healthy run and a failed one.

Each run trains a small network on 1,000 digits of MNIST5k for 15 epochs on a CPU. The
failed twin differs in the one thing that its name says. `python docs/curves.py` needs the extras
`demo` and `report`, trains all pairs and prints a table; `python docs/curves.py simsiam` draws one.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from torch import Tensor

from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.callbacks import CollapseWarning, OnlineKNN, OnlinePrototypes, OnlineSpectrum
from sslzoo.data import MNIST5k
from sslzoo.heads import (
    MLP,
    DINOHead,
    MAEDecoder,
    simclr_projector,
    simsiam_predictor,
)
from sslzoo.methods import DINO, MAE, MoCo, SimCLR, SimSiam, SwAV, VICReg
from sslzoo.optim import ConstantSchedule, WarmupCosine
from sslzoo.transforms import digit_views, mae_views
from sslzoo.transforms.image.views import Views

FOLDER = Path(__file__).parent / "guides/curves"
EPOCHS, WIDTH, SIDE = 15, 64, 28
KNN, RANK, PROTOTYPES = "val/knn_top1_k20_t0.07", "val/effective_rank", "val/effective_prototypes"

Make = Callable[[], LightningModule]


class WithoutStopGradient(SimSiam):
    """SimSiam whose target has a gradient."""

    def stop_gradient(self, z: Tensor) -> Tensor:
        return z


class WithoutSinkhorn(SwAV):
    """SwAV whose assignments are a softmax."""

    def assign(self, z: Tensor) -> Tensor:
        return (z @ self.prototypes.weight.T / self.epsilon).softmax(dim=-1)


VIEWS = partial(digit_views, SIDE, scale=(0.75, 1.0), elastic=0.03)


class Pair(NamedTuple):
    """A healthy run and a failed one of one family."""

    title: str
    healthy: Make
    failed: Make
    fault: str
    metrics: tuple[str, ...]
    features: str = "embed"
    views: Callable[[], Views] = VIEWS


def _net() -> SmallResNet:
    return SmallResNet((16, 32, WIDTH), in_chans=1)


def _adam(lr: float) -> partial[torch.optim.Optimizer]:
    return partial(torch.optim.AdamW, lr=lr)


def _sgd(lr: float) -> partial[torch.optim.Optimizer]:
    return partial(torch.optim.SGD, lr=lr, momentum=0.9)


def _simclr(lr: float) -> SimCLR:
    schedule = WarmupCosine(warmup_epochs=2)
    head = simclr_projector(WIDTH, out_dim=32)
    return SimCLR(_net(), head, 0.2, optimizer=_sgd(lr), schedule=schedule)


def _moco(momentum: float) -> MoCo:
    head = MLP([WIDTH, WIDTH, 32], norm=False)
    return MoCo(_net(), head, 512, 0.1, momentum, shuffle=False, optimizer=_adam(0.003))


def _simsiam(cls: type[SimSiam]) -> SimSiam:
    head = MLP([WIDTH, WIDTH, WIDTH], bias=False)  # a last norm would keep the features apart
    return cls(_net(), head, simsiam_predictor(WIDTH, 16), optimizer=_sgd(0.2))


def _vicreg(variance_weight: float) -> VICReg:
    head = MLP([WIDTH, 64, 64], bias=False)
    return VICReg(_net(), head, variance_weight=variance_weight, optimizer=_adam(0.003))


def _swav(cls: type[SwAV]) -> SwAV:
    head = MLP([WIDTH, 64, 16], bias=False)
    return cls(_net(), head, 30, freeze_prototypes_steps=10, optimizer=_adam(0.003))


def _dino(teacher_temperature: float) -> DINO:
    return DINO(
        _net(),
        DINOHead(WIDTH, 30, hidden_dim=64, bottleneck_dim=16, norm=True),
        teacher_temperature=ConstantSchedule(teacher_temperature),
        momentum=ConstantSchedule(0.95),
        freeze_last_layer_epochs=0,
        optimizer=_adam(0.003),
    )


def _mae(lr: float) -> MAE:
    vit = small_vit(28, 4, 64, 3, 4, in_chans=1, positions="mae", init="mae")
    decoder = MAEDecoder(64, 7, 4, width=48, depth=1, num_heads=4, channels=1)
    schedule = WarmupCosine(warmup_epochs=2)
    return MAE(vit, decoder, optimizer=_adam(lr), schedule=schedule)


PAIRS = {
    "simclr": Pair(
        "SimCLR: negatives in the batch",
        partial(_simclr, 0.3),
        partial(_simclr, 300.0),
        "rate 1000 times too high",
        (KNN, RANK),
        "forward",
    ),
    "moco": Pair(
        "MoCo: negatives in a queue",
        partial(_moco, 0.99),
        partial(_moco, 0.0),
        "momentum 0",
        (KNN, RANK),
    ),
    "simsiam": Pair(
        "SimSiam: a predictor and a stop-gradient",
        partial(_simsiam, SimSiam),
        partial(_simsiam, WithoutStopGradient),
        "no stop-gradient",
        (KNN, RANK),
    ),
    "vicreg": Pair(
        "VICReg: statistics of the batch",
        partial(_vicreg, 25.0),
        partial(_vicreg, 0.0),
        "no variance term",
        (KNN, RANK),
    ),
    "swav": Pair(
        "SwAV: prototypes",
        partial(_swav, SwAV),
        partial(_swav, WithoutSinkhorn),
        "no Sinkhorn",
        (KNN, PROTOTYPES),
        "forward",
    ),
    "dino": Pair(
        "DINO: self-distillation",
        partial(_dino, 0.04),
        partial(_dino, 10.0),
        "teacher not sharpened",
        (KNN, PROTOTYPES),
        "forward",
    ),
    "mae": Pair(
        "MAE: masked pixels",
        partial(_mae, 0.002),
        partial(_mae, 0.2),
        "rate 100 times too high",
        (KNN, RANK),
        "forward",
        partial(mae_views, 28, mean=None, std=None),
    ),
}


@cache
def _digits(views: Callable[[], Views]) -> MNIST5k:
    return MNIST5k(views(), batch_size=64, channels=1, train_fraction=0.25)


class Recorder(Callback):
    """The loss of each step, and the metrics of each epoch."""

    def __init__(self, metrics: tuple[str, ...]) -> None:
        self.curves: dict[str, list[float]] = {"train/loss": [], **{name: [] for name in metrics}}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, *_: object
    ) -> None:
        assert isinstance(outputs, dict)
        self.curves["train/loss"].append(float(outputs["loss"]))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            self._take(trainer)

    def _take(self, trainer: Trainer) -> None:
        for name, values in self.curves.items():
            if name != "train/loss":
                values.append(float(trainer.callback_metrics[name]))


def train(make: Make, pair: Pair) -> dict[str, list[float]]:
    """Curves of one run."""
    seed_everything(0, verbose=False)
    recorder = Recorder(pair.metrics)
    callbacks: list[Callback] = [OnlineKNN(k=20, temperature=0.07), recorder]
    if RANK in pair.metrics:
        callbacks.insert(0, OnlineSpectrum(features=pair.features))
    if PROTOTYPES in pair.metrics:
        callbacks.insert(0, OnlinePrototypes())
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(make(), datamodule=_digits(pair.views))
    return recorder.curves


def draw(pair: Pair, runs: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Write the figure of a pair: the loss, then each metric, of both runs."""
    names = ("train/loss", *pair.metrics)
    figure = Figure(figsize=(3.1 * len(names), 2.4), layout="constrained")
    figure.suptitle(pair.title, fontsize=10)
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for (label, curves), color in zip(runs.items(), ("#15803d", "#b91c1c"), strict=True):
            y = curves[name]
            x = [EPOCHS * (i + 1) / len(y) for i in range(len(y))]
            axes.plot(x, y, color=color, linewidth=1.2, label=label)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(color="#e5e7eb", linewidth=0.5)
    figure.axes[0].legend(fontsize=7, frameon=False)
    svg = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sslzoo"}):
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    text = re.sub(r"(\.\d\d)\d+", r"\1", svg.getvalue())
    text = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", text)
    text = re.sub(r"\s*\n\s*", " ", text).replace(" <g id=", "\n<g id=")  # a line per group
    path.write_text(text.strip() + "\n")


def main(names: list[str]) -> None:
    """Train and draw the pairs of these names, by default all, and print the last values."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=CollapseWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    print("| run | loss, first | last | " + " | ".join((KNN, RANK, PROTOTYPES)) + " | s |")
    print("|---|---|---|---|---|---|---|")
    for name in names or PAIRS:
        pair, runs = PAIRS[name], {}
        for label, make in (("healthy", pair.healthy), (pair.fault, pair.failed)):
            start = time.perf_counter()
            curves = runs[label] = train(make, pair)
            loss = curves["train/loss"]
            last = [f"{curves[m][-1]:.3f}" if m in curves else "" for m in (KNN, RANK, PROTOTYPES)]
            seconds = time.perf_counter() - start
            cells = [f"{name}, {label}", f"{loss[0]:.3f}", f"{loss[-1]:.3f}", *last]
            print("| " + " | ".join(cells) + f" | {seconds:.1f} |", flush=True)
        draw(pair, runs, FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
