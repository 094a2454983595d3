"""Callbacks whose module, data or arguments do not fit: an error before the first step.

Every public callback enters by itself; the named cases are those whose errors came after one, five
or all epochs.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import sslzoo.callbacks
from sslzoo.batch import Batch
from sslzoo.callbacks import (
    EMA,
    AttentionMaps,
    ClusterEpochs,
    CommitMemory,
    FinalTable,
    FreezeUntil,
    OnlineAccuracy,
    OnlineKNN,
    OnlineProbe,
    OnlinePrototypes,
    OnlineSpearman,
    OnlineSpectrum,
    ProgressBar,
    SentenceTable,
    WeightDecaySchedule,
)
from sslzoo.callbacks.evaluation import Evaluation
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.methods import BYOL, SimCLR
from sslzoo.optim import ConstantSchedule
from tests.test_every_method import BATCH, Loader, batches, toy

NUM_CLASSES, SIZE = 3, 12
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "EMA": (0.9, "after_step"),
    "FreezeUntil": ("projector", 1.0),
    "L2SP": (0.1,),
    "Watch": ({"perplexity": 1.0}, "look at it"),
    "WeightDecaySchedule": (ConstantSchedule(0.1),),
}
CALLBACKS = [
    cls
    for cls in (getattr(sslzoo.callbacks, name) for name in sslzoo.callbacks.__all__)
    if inspect.isclass(cls) and issubclass(cls, Callback) and not inspect.isabstract(cls)
]


def labels() -> Tensor:
    return torch.arange(SIZE) % NUM_CLASSES


class Data(LightningDataModule):
    """A method's toy batches, and images with labels for evaluation."""

    def __init__(self, cls: Any, label: Tensor | None = None, num_classes: int | None = 3) -> None:
        super().__init__()
        self.method, data = toy(cls)
        self.content = batches(data, BATCH, 0, 1)
        self.label = labels() if label is None else label
        self.num_classes = num_classes
        self.query: Any = "the bank"

    def train_dataloader(self) -> Any:
        return Loader(self.content)

    def eval_dataloaders(self) -> EvalLoaders:
        images = self.content[0].views[0][: len(self.label)]
        bank = DataLoader(TensorDataset(images, self.label), batch_size=5)
        query = bank if self.query == "the bank" else self.query
        return EvalLoaders(bank, query, lambda batch: batch, self.num_classes, sharded=False)


class Plain(LightningModule):
    """A user's module, with nothing that a callback of ours may ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.LazyLinear(4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch.views[0].flatten(1).float()).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Steps(Callback):
    """Counts optimizer steps."""

    count = 0

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.count += 1


def fit(module: Any, data: Any, *callbacks: Callback, folder: Path, **options: Any) -> Steps:
    steps = Steps()
    run = Trainer(
        accelerator="cpu",
        logger=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, steps],
        **{"max_epochs": 1, "enable_progress_bar": False, **options},
    )
    module.steps = steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(module, data)
    return steps


def refused(module: Any, data: Any, *callbacks: Callback, folder: Path) -> str:
    """The error's text; it comes before the first step."""
    with pytest.raises(ValueError, match="must") as caught:
        fit(module, data, *callbacks, folder=folder)
    assert module.steps.count == 0
    return str(caught.value)


def made(cls: type[Callback]) -> Callback:
    return cls(*ARGUMENTS.get(cls.__name__, ()))


@pytest.mark.parametrize("cls", CALLBACKS, ids=lambda cls: cls.__name__)
def test_a_foreign_module_trains_or_is_refused(cls: type[Callback], tmp_path: Path) -> None:
    """No traceback of ours, with a module and loaders that know nothing of sslzoo."""
    _, content = toy(SimCLR)
    module, bar = Plain(), {"enable_progress_bar": cls is ProgressBar}
    try:
        fit(module, Loader([content]), made(cls), folder=tmp_path, **bar)
    except ValueError as error:
        assert " must " in str(error), error  # noqa: PT017
        assert ", got " in str(error), error  # noqa: PT017
        assert module.steps.count == 0


WRONG: dict[str, tuple[type, Callable[[Data], Any], Callable[[], Callback], str]] = {
    "k above the bank": (SimCLR, lambda d: d, lambda: OnlineKNN(13), "k must be at most 12"),
    "k of a table": (SimCLR, lambda d: d, lambda: FinalTable(13), "k must be at most 12"),
    "labels (n, 2)": (
        SimCLR,
        lambda d: d.__dict__.update(label=torch.zeros(SIZE, 2)),
        lambda: OnlineKNN(3),
        "labels must be",
    ),
    "labels too high": (
        SimCLR,
        lambda d: d.__dict__.update(label=labels() + 2),
        lambda: OnlineKNN(3, every_n_epochs=5),
        "labels must be in 0..2, since num_classes is 3, for OnlineKNN, got 2..4",
    ),
    "one label too high": (
        SimCLR,
        lambda d: d.__dict__.update(label=torch.tensor([0] * (SIZE - 1) + [3])),
        lambda: OnlineKNN(3),
        "got 0..3",
    ),
    "labels below 0": (
        SimCLR,
        lambda d: d.__dict__.update(label=labels() - 1),
        lambda: OnlineProbe(),
        "labels must be in 0..2",
    ),
    "no labels": (
        SimCLR,
        lambda d: d.__dict__.update(num_classes=None),
        lambda: OnlineKNN(3),
        "the data must have labels",
    ),
    "no query set": (
        SimCLR,
        lambda d: d.__dict__.update(query=None),
        lambda: OnlineProbe(),
        "must have a validation set",
    ),
    "too few classes of a probe": (SimCLR, lambda d: d, lambda: OnlineProbe(2), "in 0..1"),
    "labels that training has not": (
        SimCLR,
        lambda d: d.__dict__.update(content=[b._replace(label=None) for b in d.content]),
        lambda: OnlineProbe(),
        "the data must have labels",
    ),
    "training labels too high": (
        SimCLR,
        lambda d: d.__dict__.update(content=[b._replace(label=b.label + 2) for b in d.content]),
        lambda: OnlineProbe(),
        "labels must be in 0..2",
    ),
    "no logits": (SimCLR, lambda d: d, lambda: OnlineAccuracy(), "must give 3 logits"),
    "no prototypes": (
        SimCLR,
        lambda d: d,
        lambda: OnlinePrototypes(every_n_epochs=20),
        "features must be a method of SimCLR, which has no 'assignments'",
    ),
    "features that do not exist": (
        SimCLR,
        lambda d: d,
        lambda: OnlineSpectrum(features="embedd"),
        "features must be a method",
    ),
    "features that are a number": (
        SimCLR,
        lambda d: d,
        lambda: OnlineKNN(3, features="temperature"),
        "features must be a method",
    ),
    "an empty bank": (
        SimCLR,
        lambda d: d.__dict__.update(
            content=[Batch([d.content[0].views[0][:0]] * 2, torch.arange(0))], label=labels()[:0]
        ),
        lambda: OnlineKNN(3),
        "at least one batch",
    ),
    "attention of a net without": (
        SimCLR,
        lambda d: d,
        lambda: AttentionMaps(),
        "vit must be a timm ViT with a class token",
    ),
    "sentences of an image method": (
        SimCLR,
        lambda d: d,
        lambda: SentenceTable(),
        "must have num_ids, token_embedding for SentenceTable, got",
    ),
    "pairs of an image set": (
        SimCLR,
        lambda d: d,
        lambda: OnlineSpearman(),
        "must have similarity_dataloaders",
    ),
    "a teacher of a method without": (
        SimCLR,
        lambda d: d,
        lambda: EMA(0.9, "after_step"),
        "must have a teacher for EMA, got SimCLR",
    ),
    "clusters of a method without": (
        SimCLR,
        lambda d: d,
        lambda: ClusterEpochs(),
        "must have clusters, remember, step, seed for ClusterEpochs, got SimCLR",
    ),
    "a bank of a method without": (
        BYOL,
        lambda d: d,
        lambda: CommitMemory(refresh_every_n_epochs=2),
        "must have a MemoryBank",
    ),
    "a part that does not exist": (
        SimCLR,
        lambda d: d,
        lambda: FreezeUntil("head.last_layer", epochs=1),
        "module must be a submodule of SimCLR, got 'head.last_layer'",
    ),
    "decay of nothing": (
        SimCLR,
        lambda d: setattr(d.method, "_optimizer", lambda p: torch.optim.SGD(p, lr=0.1)),
        lambda: WeightDecaySchedule(ConstantSchedule(0.1)),
        "weight_decay must be above 0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_callback_cannot_serve_is_refused(name: str, tmp_path: Path) -> None:
    cls, change, callback, error = WRONG[name]
    data = Data(cls)
    change(data)
    assert error in refused(data.method, data, callback(), folder=tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "callback",
    [
        ModelCheckpoint(monitor="val_loss"),
        ModelCheckpoint(monitor="val/knn_top1_k20_t0.07"),
        EarlyStopping(monitor="train/los"),
    ],
    ids=lambda callback: callback.monitor,
)
@pytest.mark.filterwarnings("ignore")
def test_a_monitor_that_nothing_logs_is_refused(callback: Any, tmp_path: Path) -> None:
    data = Data(SimCLR)
    run = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[callback, OnlineKNN(3)],
        max_epochs=1,
    )
    known = "train/loss, train/nt_xent, val/knn_top1_k3_t0.07"
    error = f"the monitor of {type(callback).__name__} must be one of {known}, got"
    with pytest.raises(ValueError, match=error):
        run.fit(data.method, data)
    assert data.method.step == 0


class Score(Evaluation):
    """Logs the number of its calls, which falls after the second."""

    calls = 0

    def metric_names(self) -> list[str]:
        return ["val/score"]

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        self.calls += 1
        return {"val/score": [1.0, 5.0, 2.0][self.calls - 1]}


@pytest.mark.parametrize("options", [{}, {"save_on_train_epoch_end": False}], ids=str)
def test_a_monitor_waits_for_its_evaluation(options: dict[str, Any], tmp_path: Path) -> None:
    """Seven epochs, evaluated after the third, the sixth and the last; the second is the best."""
    data, score = Data(SimCLR), Score(every_n_epochs=3)
    best = ModelCheckpoint(
        tmp_path, "{epoch}", monitor="val/score", mode="max", save_top_k=1, **options
    )
    stop = EarlyStopping("val/score", mode="max", patience=2)
    fit(data.method, data, score, best, stop, folder=tmp_path, max_epochs=7)
    assert score.calls == 3
    assert Path(best.best_model_path).name == "epoch=5.ckpt"
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=5.ckpt"]
    assert stop.wait_count == 1


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from zip(torch.rand(5, 3, 8, 8, dtype=torch.float64), labels(), strict=False)


def test_evaluation_loaders_of_every_kind_rehearse(tmp_path: Path) -> None:
    data = Data(SimCLR)
    data.query = DataLoader(Stream(), batch_size=2)
    fit(data.method, data, OnlineKNN(3), folder=tmp_path)
    data.query = [data.content[0]]
    fit(data.method, data, OnlineKNN(3), folder=tmp_path)


class Named(TensorDataset):
    """A set of images whose attribute `labels` or `targets` is something else than its labels."""

    def __init__(self, data: Data, found: Any) -> None:
        super().__init__(data.content[0].views[0], labels())
        self.labels, self.targets = found


@pytest.mark.parametrize(
    "found",
    [
        (["cat", "dog", "owl"], None),
        (None, ["cat"] * SIZE),
        ([7, 8, 9], None),
        (None, [900 + i for i in range(SIZE)]),
        ({"a": 1}, object()),
    ],
    ids=["names", "name per sample", "numbers of classes", "before a target_transform", "others"],
)
def test_what_a_set_calls_labels_may_be_others(found: Any, tmp_path: Path) -> None:
    data = Data(SimCLR)
    data.query = DataLoader(Named(data, found), batch_size=5)
    fit(data.method, data, OnlineKNN(3), folder=tmp_path)


def test_labels_in_a_column_count_as_classes(tmp_path: Path) -> None:
    data = Data(SimCLR)
    data.label = labels()[:, None]
    fit(data.method, data, OnlineKNN(3), OnlineSpectrum(), folder=tmp_path)
    assert 0 <= float(data.method.trainer.callback_metrics["val/knn_top1_k3_t0.07"]) <= 1
