"""Trainable: a LightningModule that counts optimizer steps and resumes exactly.

It is the common base of pre-training (`SSLMethod`) and downstream training (`sslzoo.eval`):
`training_step` logs and sums the terms of `losses`; optimizer and schedule come from callables;
step, run_length and generators are in the checkpoint. It works in a Lightning Trainer on one
device, under DDP or sharded (FSDP2), and in a plain loop (docs/plain_loop.md).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sized
from types import FrameType
from typing import Any, cast

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.core.saving import load_hparams_from_yaml
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.parsing import collect_init_args
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from sslzoo.batch import Batch, ViewSpec, as_batch, blamed_on, check_box_areas, describe_views
from sslzoo.distributed import gather_objects, keep_buckets, rank, sum_over_ranks, world_size
from sslzoo.layers import GlobalBatchNorm
from sslzoo.memory import memory_buffers
from sslzoo.optim import LARC, Clock, ConstantSchedule, RunLength, Schedule, ScheduleLR, all_alike
from sslzoo.random import run_seed
from sslzoo.sharding import FullyShard, is_sharded, local, refuse_sharding, shard
from sslzoo.trust import (
    PLAIN,
    forget_other_files,
    hyper_parameters,
    module_of,
    read_checkpoint,
    refuse_objects,
    renamed_arguments,
)

OptimizerFactory = Callable[[Iterable], Optimizer]
GroupsFactory = Callable[[nn.Module], list]


def _is_plain(value: Any) -> bool:
    """Whether a value consists of numbers and strings only."""
    if isinstance(value, dict):
        return all(_is_plain(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return isinstance(value, PLAIN)


def _check_eps(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose eps is zero in the type of its parameters, as 1e-8 is in float16.

    Raises:
        ValueError: names both, and what to use instead.
    """
    if isinstance(optimizer, LARC):  # leaves parameters and gradients of norm 0 as they are
        return
    for group in optimizer.param_groups:
        eps = group.get("eps")
        for dtype in {parameter.dtype for parameter in group["params"]}:
            if isinstance(eps, float) and eps > 0 and float(torch.tensor(eps, dtype=dtype)) == 0:
                raise ValueError(
                    f"eps of {type(optimizer).__name__} must not be zero in the parameters' "
                    f"{str(dtype).rpartition('.')[2]}, got {eps:g}, so that the first step would "
                    "divide by zero; set precision: 16-mixed or bf16-mixed, or eps: 1e-4"
                )


class Trainable(LightningModule, ABC):
    """Abstract base of all trained modules; a subclass implements `losses`.

    Args:
        optimizer: called with the parameter groups; needed by `fit`, not by a plain loop.
        schedule: factor that multiplies the learning rates at each step; None: constant rates.
        parameter_groups: called with the module; decides which parameters get weight decay.

    Attributes:
        clock: counts the steps of the optimizer that trains; saved.
        uses_labels: whether `losses` reads the batch's labels.
        takes: the views that `losses` takes; the first batch of a run is checked against it.
    """

    uses_labels: bool = False
    takes: ViewSpec = ViewSpec()

    def __init__(
        self,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__()
        if schedule is not None and not isinstance(schedule, Schedule):
            raise ValueError(
                "schedule must be a Schedule, such as sslzoo.optim.WarmupCosine(warmup_epochs=10), "
                f"got {schedule!r:.100}; annotate the argument of {type(self).__name__} as "
                "`schedule: Schedule | None`, which is in sslzoo.optim"
            )
        for name, given in (("optimizer", optimizer), ("parameter_groups", parameter_groups)):
            if given is not None and not callable(given):
                kind = "Optimizer" if name == "optimizer" else "Groups"
                raise ValueError(
                    f"{name} must be a function, got a {type(given).__name__}; annotate the "
                    f"argument of {type(self).__name__} as `{name}: {kind}Factory | None`, which "
                    "is in sslzoo.methods.base"
                )
        self._optimizer, self._schedule = optimizer, schedule
        self._parameter_groups = parameter_groups
        self.clock = Clock()
        self._saved_clock: dict[str, Any] | None = None
        self._max_epochs: int | None = None
        self._has_trained = False
        self._unread: deque[tuple[int, tuple[str, ...], Tensor]] = deque(maxlen=1000)
        self._rng_to_restore: dict[str, Any] | None = None
        self._keep_plain_hyperparameters(inspect.currentframe())

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss terms by name, gathering over ranks inside; their sum is minimized."""

    # -- the clock

    @property
    def step(self) -> int:
        """Optimizer steps taken so far, the argument of every schedule."""
        return self.clock.step

    @step.setter
    def step(self, step: int) -> None:
        self.clock.step = step

    @property
    def run_length(self) -> RunLength:
        """Length of the run; kept when a finished run is extended."""
        return self.clock.run_length

    @run_length.setter
    def run_length(self, run_length: RunLength) -> None:
        self.clock.run_length = run_length

    def _follow(self, optimizer: Optimizer) -> None:
        """Start the clock of an optimizer, at 0 or where the checkpoint of this run was saved."""
        if self.clock.follows(optimizer):
            return
        self.clock.follow(optimizer)
        if self._trainer is not None:
            self.run_length = self._trainer_run_length()
        if self._saved_clock is not None:
            self.clock.load_state_dict(self._saved_clock)
            self._saved_clock = None

    def _trainer_run_length(self) -> RunLength:
        """Length of the run that the trainer is about to start."""
        trainer, epochs, steps = self.trainer, self._last_epoch(), self.trainer.max_steps
        if epochs == steps == -1:
            raise ValueError("trainer.max_epochs or max_steps must be set, got a run without end")
        if trainer.limit_train_batches == 0:
            return RunLength(1, 1)  # Lightning skips the training
        trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches
        if batches == float("inf"):
            if steps == -1:
                raise ValueError(
                    "trainer.max_steps, or limit_train_batches as a number of batches, must be "
                    "set, since the training loader has no length, got neither"
                )
            return RunLength(steps, 0)
        per_epoch = max(1, -(-int(batches) // self._accumulated_batches()))
        ends = [per_epoch * max(1, epochs - trainer.current_epoch)] if epochs != -1 else []
        if steps != -1:
            ends.append(max(1, steps - trainer.global_step))
        return RunLength(min(ends), per_epoch)

    def _last_epoch(self) -> int:
        """`max_epochs` before any callback extends it, as averaging of weights does."""
        return cast(int, self.trainer.max_epochs if self._max_epochs is None else self._max_epochs)

    def _accumulated_batches(self) -> int:
        """Batches per optimizer step, of the Trainer or of the callback that sets them."""
        factors = {self.trainer.accumulate_grad_batches}
        for callback in cast(Any, self.trainer).callbacks:
            if isinstance(callback, GradientAccumulationScheduler):
                factors = {
                    factor
                    for epoch, factor in callback.scheduling.items()
                    if self._last_epoch() == -1 or epoch < self._last_epoch()
                }
        if len(factors) > 1:
            raise ValueError(
                "GradientAccumulationScheduler must keep one number of batches for the whole run, "
                "since schedules count in epochs of equally many optimizer steps, got "
                f"{sorted(factors)}"
            )
        return factors.pop()

    # -- training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        terms = self._checked_losses(as_batch(batch))
        values = torch.stack(list(terms.values()))
        loss = values.sum()
        if self._trainer is not None:
            self._unread.append((self.step, tuple(terms), values.detach()))
        if self._logs_now():
            means = sum_over_ranks(torch.cat([loss[None], values]).detach()) / world_size()
            self.log("train/loss", means[0], prog_bar=True)
            for name, value in zip(terms, means[1:], strict=True):
                self.log(f"train/{name}", value)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Do nothing: callbacks (OnlineKNN, OnlineProbe, ...) evaluate."""

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        if self._optimizer is None:
            raise ValueError(
                f"the optimizer of {type(self).__name__} must be a function, got None; pass "
                "optimizer=lambda params: torch.optim.SGD(params, lr=...)"
            )
        optimizer = self._optimizer(self._parameter_groups(self))
        self._follow(optimizer)
        rates = self._schedule
        if rates is None and any("zero_epochs" in group for group in optimizer.param_groups):
            rates = ConstantSchedule(1.0)
        if rates is None:
            return optimizer
        if self._trainer is None:
            ScheduleLR(optimizer, rates, self.run_length).follow(self)
            return optimizer
        schedule = ScheduleLR(optimizer, rates, self._trainer_run_length())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _checked_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute `losses`; what the first batch of a run is wrong with is named before a step."""
        name = type(self).__name__
        self.takes.check(batch, name)
        boxes = batch.boxes if self.takes.boxes else None
        if boxes is not None and (boxes.device.type == "cpu" or not self._has_trained):
            check_box_areas(boxes, name)  # an accelerator would wait for it in every step
        if self._has_trained:
            return self.losses(batch)
        try:
            with blamed_on(batch.views, f"{name} cannot train"):
                terms = self.losses(batch)
                finite = bool(torch.stack(list(terms.values())).isfinite().all())
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"the global batch of {name} must have at least 2 samples for its batch norm, got "
                f"views of {describe_views(batch.views)}"
            ) from error
        if not finite:
            values = ", ".join(f"{key} {value.item():.4g}" for key, value in terms.items())
            raise ValueError(
                f"the loss of {name} must be finite at the first step, got {values}; look for "
                "samples with values that are not finite, or set precision: 32-true"
            )
        self._has_trained = True
        if self._trainer is not None:
            self._check_monitors(terms)
        return terms

    def _check_monitors(self, terms: dict[str, Tensor]) -> None:
        """Refuse a monitor that nothing logs, where everything that logs is known."""
        callbacks: list[Any] = cast(Any, self.trainer).callbacks
        known: list[str] = ["train/loss", *(f"train/{name}" for name in terms)]
        for part in (self, *callbacks):
            if not type(part).__module__.startswith(("sslzoo.", "lightning.")):
                return
            names = part.metric_names() if hasattr(part, "metric_names") else []
            if names is None:
                return
            known += names
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            if monitor not in (None, "epoch", "step", *known):
                raise ValueError(
                    f"the monitor of {type(callback).__name__} must be one of {', '.join(known)}, "
                    f"got {monitor!r}"
                )

    def _logs_now(self) -> bool:
        if self._trainer is None:
            return False
        stepped = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        every: int = cast(Any, self.trainer).log_every_n_steps
        return every > 0 and ((stepped + 1) % every == 0 or stepped == 0)

    # -- ranks and strategies

    def setup(self, stage: str) -> None:
        strategy = self.trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FullyShard):
            raise ValueError(
                "the Trainer's strategy must be a single device, DDP or "
                "sslzoo.sharding.FullyShard (FSDP2), the only ones that sslzoo supports, got "
                f"{type(strategy).__name__}"
            )
        if is_sharded(self) and not isinstance(strategy, FullyShard):
            raise ValueError(
                f"{type(self).__name__} must be loaded from a checkpoint after a sharded run to "
                f"use another strategy, got {type(strategy).__name__} for its sharded parameters"
            )
        self._saved_clock = None
        self._max_epochs = getattr(self.trainer, "max_epochs", None)
        if isinstance(strategy, FullyShard):
            for callback in cast(Any, self.trainer).callbacks:
                if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
                    refuse_sharding(strategy, type(callback).__name__, "copies the whole module")
        if isinstance(strategy, DDPStrategy | FullyShard):
            self._ddp_params_and_buffers_to_ignore = memory_buffers(self)

    def configure_model(self) -> None:
        """Shard the module if the strategy says so; a subclass's own one calls this one last."""
        if self._trainer is not None and isinstance(self.trainer.strategy, FullyShard):
            shard(self)

    # -- saving

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_parameters()
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint["sslzoo"] = {
            **self.clock.state_dict(),
            "rng": gather_objects(state),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("sslzoo")
        if saved is None:
            return
        self.clock.load_state_dict(saved)
        if self._trainer is None:
            return
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.optimizers:
            self._saved_clock = saved  # for the optimizer that is not configured yet
        if isinstance(self.trainer.precision_plugin, DoublePrecision):
            self.double()  # Lightning 2.6 does so after copying the weights, too late
        states = saved["rng"]
        self._rng_to_restore = states[rank()] if rank() < len(states) else None

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        trust: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a Lightning checkpoint that names only classes that `sslzoo.trust` allows.

        Args:
            checkpoint_path: a path or an open file, read as tensors and plain values.
            map_location: see `LightningModule.load_from_checkpoint`.
            hparams_file: see there; a YAML file of plain values for a module built in Python.
            strict: see there.
            weights_only: ignored: only tensors and plain values are ever read.
            trust: whether the file may name any class that Python can import (`sslzoo.load`).
            kwargs: arguments of the module that replace the file's.

        Raises:
            ValueError: see `sslzoo.trust.module_of`; or an argument is neither saved nor given.
        """
        if hparams_file is not None:
            refuse_objects(hparams_file)
        saved = read_checkpoint(checkpoint_path)
        where = str(checkpoint_path)
        known = hyper_parameters(saved, where)
        if hparams_file is None and "_class_path" in known:
            how: Any = {"whole": True, "strict": strict is not False, "trust": trust}
            module = module_of(saved, where, cls, **how, **kwargs)
            return module if map_location is None else module.to(map_location)
        wanted = inspect.signature(cls).parameters.values()
        missing = [
            f"{p.name}=..."
            for p in wanted
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            if p.name not in {**known, **kwargs}
        ]
        if hparams_file is None and missing:
            raise ValueError(
                f"{cls.__name__}.load_from_checkpoint must be given {', '.join(missing)}, since "
                f"{where} was saved from a {cls.__name__} built in Python and lacks these objects"
            )
        if hasattr(checkpoint_path, "seek"):
            checkpoint_path.seek(0)
        if hparams_file is None:
            kwargs = {**renamed_arguments(hyper_parameters(saved, where)), **kwargs}
        if hparams_file is not None and not str(hparams_file).endswith(".csv"):
            # With omegaconf installed, Lightning would refuse to have modules beside the file's.
            kwargs = {**load_hparams_from_yaml(hparams_file, use_omegaconf=False), **kwargs}
            hparams_file = None
        # Lightning's instantiator would build any class that the file names.
        plain = {**kwargs, "_instantiator": None}
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, True, **plain
        )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        keep_buckets(self.trainer.strategy.model)
        forget_other_files(self.trainer)
        self._has_trained = False
        self._unread.clear()
        for optimizer in self.trainer.optimizers[:1]:
            self._follow(optimizer)  # a subclass may have configured it
        for optimizer in self.trainer.optimizers:
            _check_eps(optimizer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Refuse to go on with parameters that are not finite.

        They are looked at when an epoch ends, and when a loss was not finite; the losses are read
        where Lightning reads them to log them, so that no other step waits for an accelerator.

        Raises:
            ValueError: see `_check_parameters`.
        """
        loop = self.trainer.fit_loop.epoch_loop
        if loop.done or (self._logs_now() and not loop._should_accumulate()):
            if loop.done or self._losses_not_finite():
                self._check_parameters()
            self._unread.clear()

    def _losses_not_finite(self) -> str:
        """The first losses since the last reading that are not finite on all ranks, and when."""
        if not self._unread:
            return ""
        values = sum_over_ranks(torch.cat([values for *_, values in self._unread]))
        names = [(name, step) for step, terms, _ in self._unread for name in terms]
        finite = values.isfinite().tolist()
        wrong = [each for each, good in zip(names, finite, strict=True) if not good]
        first = [name for name, step in wrong if step == wrong[0][1]]
        return f"{' and '.join(dict.fromkeys(first))} after {wrong[0][1]} steps" if wrong else ""

    def _check_parameters(self) -> None:
        """Refuse parameters that are not finite.

        Raises:
            ValueError: names how many there are, the first, and the losses that were not finite.
        """
        names = [name for name, _ in self.named_parameters()]
        bad = [~local(parameter).isfinite().all() for parameter in self.parameters()]
        count = sum_over_ranks(torch.stack(bad).to(torch.int64))
        wrong = [name for name, number in zip(names, count.tolist(), strict=True) if number]
        if wrong:
            losses = self._losses_not_finite()
            raise ValueError(
                f"the parameters of {type(self).__name__} must be finite, got NaN or infinity in "
                f"{len(wrong)} of {len(names)} after {self.step} steps, the first is {wrong[0]}"
                f"{losses and f', and in the loss {losses}'}; "
                "use a lower learning rate, clip gradients, or set precision: 32-true"
            )

    def on_train_start(self) -> None:
        schedule = self.lr_schedulers()
        if not self.clock.resumed:  # a callback may have changed the batch size
            self.run_length = self._trainer_run_length()
            if isinstance(schedule, ScheduleLR):
                schedule.set_run_length(self.run_length)
        elif isinstance(schedule, ScheduleLR):
            self.run_length = schedule.run_length
        if self._rng_to_restore is not None:  # after every random draw of the start-up
            torch.set_rng_state(self._rng_to_restore["cpu"].cpu())
            if "cuda" in self._rng_to_restore and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._rng_to_restore["cuda"].cpu(), self.device)
            self._rng_to_restore = None
        self._check_last_batch()
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        if loop.restarted_mid_epoch and epochs.processed == epochs.ready:
            self._end_resumed_epoch()

    def batch_multiple(self) -> int:
        """Number of which every global batch must be a multiple: that of batch norm's groups."""
        groups = (m.groups for m in self.modules() if isinstance(m, GlobalBatchNorm))
        return math.lcm(*groups)

    def _check_last_batch(self) -> None:
        """Refuse an incomplete last batch that a whole epoch later could not be trained on."""
        loader: Any = self.trainer.train_dataloader
        sampler, batches = getattr(loader, "sampler", None), self.trainer.num_training_batches
        last = getattr(sampler, "last_batch", 0)
        is_plain = isinstance(loader, DataLoader) and loader.batch_size is not None
        if is_plain and isinstance(sampler, Sized) and not loader.drop_last:
            last = len(sampler) % loader.batch_size * world_size()
        multiple = self.batch_multiple()
        if last % multiple and batches != math.inf and batches >= len(loader):
            raise ValueError(
                f"the last global batch of {type(self).__name__} must be a multiple of {multiple}, "
                f"as all others, got {last} samples; set drop_last: true"
            )

    def _end_resumed_epoch(self) -> None:
        """Run the epoch-end hooks if the checkpoint was saved after an epoch's last batch.

        `ModelCheckpoint(every_n_train_steps=...)` saves it before the epoch's end. Lightning 2.6
        resumes after that end without its hooks (a memory bank would miss its refresh, a monitor
        its metric), mistakes the next epoch for the same one, and a checkpoint of that one would
        resume at the wrong batch. While the hooks run, its counters are those after the last batch.
        """
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress
        batches = loop.epoch_loop.batch_progress
        for count in (epochs.current, epochs.total):
            count.processed -= 1
            count.completed -= 1
        loop.epoch_loop._batches_that_stepped += 1
        batches.increment_completed()
        loop.on_advance_end()
        loop.reset_restart_stage()
        if epochs.current.processed == self.trainer.max_epochs:
            return
        for count in (batches.current, batches.total):  # incremented when the next epoch begins
            count.completed -= 1
        loop.epoch_loop._batches_that_stepped -= 1

    def _keep_plain_hyperparameters(self, frame: FrameType | None) -> None:
        """Save plain hyperparameters only; a module or function would break `weights_only=True`.

        Under the CLI, Lightning stores the YAML instead, and the class itself can load it again.
        """
        ignore: list[str] = []
        if frame is not None and _given_hyperparameters.get() is None:
            for arguments in collect_init_args(frame, [], classes=(Trainable,)):
                ignore += [name for name, value in arguments.items() if not _is_plain(value)]
        self.save_hyperparameters(ignore=ignore, frame=frame, logger=False)

    @property
    def seed(self) -> int:
        """Seed of the method's own random draws, as given to `seed_everything`."""
        return run_seed()
