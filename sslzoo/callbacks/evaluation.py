"""Evaluation: abstract callback for online evaluations, with their timing and data.

An evaluation runs at the end of every n-th training epoch and of the last (before any
ModelCheckpoint, so that it can monitor the value), and at the end of `validate` and `test`; it
does not run in validation loops inside fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from sslzoo.callbacks.rehearsal import NO_LABELS, check_labels, embed_first, first_batch
from sslzoo.eval.features import Features, extract
from sslzoo.eval.loaders import EvalLoaders


class Evaluation(Callback, ABC):
    """Abstract callback that calls `evaluate` at the right times and logs the result.

    It works with any LightningModule whose method `features` maps a view to features (B, D). The
    module's weights, buffers, train flags and every random generator are left unchanged.

    Args:
        every_n_epochs: training epochs between two evaluations.
        loaders: bank, query and transform; None: the data module's.
        features: name of the module's method from a view to (B, D).

    Attributes:
        reads: the data module's method that gives the loaders.
        reads_labels: whether its metrics are scores of labels, where more is better.
        has_start: whether `evaluate` has a meaning before the first step (`CompareWithStart`).
    """

    reads = "eval_dataloaders"
    reads_labels = False
    has_start = True

    def __init__(
        self,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str = "forward",
    ) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self.loaders = loaders
        self.features = features
        self._evaluated = -1  # the last epoch of this run that was evaluated

    def skips(self, trainer: Trainer) -> bool:
        """Whether the data lacks what the evaluation needs, and the user allows that."""
        return False

    def metric_names(self) -> list[str] | None:
        """Full names of the metrics, or None if they are known after an evaluation only."""
        return None

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise what an evaluation would raise, from two samples, before the first step."""
        loaders = eval_loaders(trainer, self.loaders, type(self).__name__)
        rehearse(trainer, pl_module, loaders, self)

    def has_same_before(self, trainer: Trainer) -> bool:
        """Whether an earlier callback of the trainer evaluates the same features and loaders."""
        earlier = takewhile(lambda other: other is not self, cast(Any, trainer).callbacks)
        return any(
            isinstance(other, Evaluation)
            and (other.reads, other.features) == (self.reads, self.features)
            and other.loaders is self.loaders
            for other in earlier
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluated = -1
        if not self.skips(trainer):
            self.rehearse(trainer, pl_module)
        for callback in cast(Any, trainer).callbacks:
            if getattr(callback, "monitor", None) is not None:
                _wait_for_evaluations(callback, self.metric_names() or [])

    @abstractmethod
    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Compute the metrics by their full name, with the same values on every rank."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.should_stop or is_last_step(trainer)
        if epoch % self.every_n_epochs == 0 or last:
            self._run(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._run(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run(trainer, pl_module)

    def _run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.skips(trainer):
            return
        self._evaluated = trainer.current_epoch
        values = self.evaluate(trainer, pl_module)
        for name, value in values.items():
            log_metric(pl_module, name, value)
        for callback in cast(Any, trainer).callbacks:
            if hasattr(callback, "on_evaluated"):
                callback.on_evaluated(trainer, pl_module, self, values)


def log_metric(pl_module: LightningModule, name: str, value: float) -> None:
    """Log a value that is the same on every rank, to loggers and bar."""
    scalar = torch.tensor(value, dtype=torch.float32, device=pl_module.device)
    # Every rank has the same value, so max changes nothing and avoids Lightning's warning.
    pl_module.log(name, scalar, prog_bar=True, sync_dist=True, reduce_fx="max")


def _wait_for_evaluations(callback: Any, names: list[str]) -> None:
    """Let `ModelCheckpoint` and `EarlyStopping` act in the epochs that evaluate their metric.

    Lightning 2.6 would fail in an epoch before the first evaluation, and read an old value in every
    epoch between two.
    """
    if callback.monitor.removesuffix("_change") in names:
        for flag in ("_save_on_train_epoch_end", "_check_on_train_epoch_end"):
            if hasattr(callback, flag):
                setattr(callback, flag, True)
    act: Callable[..., None] = callback.on_train_epoch_end
    if hasattr(act, "waits"):
        return

    def on_train_epoch_end(trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_evaluated(trainer, callback.monitor):
            act(trainer, pl_module)

    on_train_epoch_end.waits = True  # type: ignore[attr-defined]
    callback.on_train_epoch_end = on_train_epoch_end


def _is_evaluated(trainer: Trainer, metric: str) -> bool:
    """Whether a metric is not an evaluation's, or was computed in this epoch."""
    metric = metric.removesuffix("_change")  # of CompareWithStart
    known = metric in trainer.callback_metrics
    for callback in cast(Any, trainer).callbacks:
        if isinstance(callback, Evaluation) and callback._evaluated != trainer.current_epoch:
            names = callback.metric_names()
            if metric in names if names is not None else not known:
                return False
    return True


def is_last_step(trainer: Trainer) -> bool:
    """Whether `max_steps` ends the run with this epoch."""
    return 0 < trainer.max_steps <= trainer.global_step


def eval_loaders(trainer: Trainer, given: EvalLoaders | None, who: str) -> EvalLoaders:
    """Return the given loaders, or the data module's.

    Args:
        trainer: its data module provides `eval_dataloaders()`.
        given: the loaders that the user passed.
        who: name of the callback, for the error.

    Raises:
        ValueError: there are neither.
    """
    if given is not None:
        return given
    make = getattr(getattr(trainer, "datamodule", None), "eval_dataloaders", None)
    if make is None:
        raise ValueError(
            f"the data module must have eval_dataloaders() for {who}, got none; pass "
            f"{who}(loaders=EvalLoaders(bank, query, transform, num_classes, sharded)) instead"
        )
    loaders = make()
    if not isinstance(loaders, EvalLoaders):
        raise ValueError(
            f"eval_dataloaders() must return EvalLoaders, got {type(loaders).__name__}"
        )
    return loaders


def rehearse(
    trainer: Trainer,
    pl_module: LightningModule,
    loaders: EvalLoaders,
    evaluation: Evaluation,
    needs_labels: bool = False,
) -> None:
    """Embed the first samples of the bank, and check the labels of bank and query set.

    Features that an earlier callback evaluates too are embedded once.

    Args:
        trainer: gives the precision.
        pl_module: the module whose features are evaluated.
        loaders: where the samples come from.
        evaluation: the callback; its `features` names the module's method.
        needs_labels: whether it needs one class per sample of both sets.

    Raises:
        ValueError: what an evaluation would raise.
    """
    first, who = first_batch(loaders.bank), type(evaluation).__name__
    if needs_labels:
        assert loaders.num_classes is not None
        check_labels(loaders.bank, first, loaders.num_classes, who)
        query = query_set(loaders, who)
        check_labels(query, first_batch(query), loaders.num_classes, who)
    if not evaluation.has_same_before(trainer):
        embed_first(trainer, pl_module, loaders, first, evaluation.features)


def labeled_loaders(
    trainer: Trainer, given: EvalLoaders | None, who: str
) -> tuple[EvalLoaders, Iterable[Any], int]:
    """Return the loaders as `eval_loaders`, that of the query set, and the number of classes."""
    loaders = eval_loaders(trainer, given, who)
    if loaders.num_classes is None:
        raise ValueError(f"the data must have labels for {who}, {NO_LABELS}")
    return loaders, query_set(loaders, who), loaders.num_classes


def has_labels(trainer: Trainer, given: EvalLoaders | None, who: str) -> bool:
    """Whether the loaders of `eval_loaders` have labels and a query set."""
    loaders = eval_loaders(trainer, given, who)
    return loaders.num_classes is not None and loaders.query is not None


def query_set(loaders: EvalLoaders, who: str) -> Iterable[Any]:
    """Return the loader of the query set, or raise an error if there is none."""
    if loaders.query is None:
        raise ValueError(
            f"the data must have a validation set (EvalLoaders.query) for {who}, got none; use "
            "OnlineSpectrum, which needs none"
        )
    return loaders.query


def embed(
    trainer: Trainer,
    pl_module: LightningModule,
    loaders: EvalLoaders,
    loader: Iterable[Any],
    features: str = "forward",
    limit: int | None = None,
) -> Features:
    """Run `extract` on the module's device and in the trainer's precision."""
    precision = trainer.precision_plugin
    forward = getattr(pl_module, features, None)
    if forward is None:
        raise ValueError(
            f"features must be a method of {type(pl_module).__name__}, which has no {features!r}"
        )

    def in_precision(view: Any) -> Tensor:
        with precision.forward_context():
            output: Tensor = forward(precision.convert_input(view))
        return output

    return extract(pl_module, loader, loaders, in_precision, pl_module.device, limit)
