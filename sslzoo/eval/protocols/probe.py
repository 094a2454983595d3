"""Probes trained by gradient descent on a frozen encoder, on new crops in each epoch.

The encoder's outputs are computed in batches that do not depend on the number of ranks, each by one
rank, and gathered; every rank then takes the same steps. So a probe and its figures are the same,
bit for bit, on any number of ranks of one kind of device.
Shapes: B samples of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.checks import check_at_least, check_choice
from sslzoo.distributed import gather_objects, gather_rows, row_layout
from sslzoo.eval.features import eval_mode
from sslzoo.optim import LARC, LARS, StepSchedule, WarmupCosine, exempt_bias_and_norm
from sslzoo.optim.schedule import RunLength

Outputs = Callable[[Any], list[Tensor]]  # a view -> what each probe reads
OptimizerName = Literal["sgd", "nesterov", "lars", "larc", "adam", "adamw"]


class Encoded(NamedTuple):
    """One batch of all ranks' samples.

    Args:
        outputs: per probe, (B, ...).
        label: (B,) int64.
    """

    outputs: list[Tensor]
    label: Tensor


class Pass(NamedTuple):
    """One pass over a set.

    Args:
        loader: this rank's batches r, r + W, ... of one sequence (`data.loader.EvalLoader`).
        transform: applied to each batch on the device; the first view is encoded.
    """

    loader: Iterable[Batch]
    transform: Callable[[Batch], Batch]


@torch.no_grad()
def encode_in_order(
    module: nn.Module, outputs: Outputs, source: Pass, device: torch.device | str
) -> Iterator[Encoded]:
    """Encode a set, and give all ranks' batches on every rank in one order; collective.

    Args:
        module: the encoder; put into eval mode.
        outputs: what the probes read of a view.
        source: the set.
        device: the encoder's device.

    Raises:
        ValueError: the samples have no classes.
    """
    batches = iter(source.loader)
    while True:
        with isolate_rng(), eval_mode(module):
            own = _next(outputs, batches, source, device)
        told = gather_objects(
            None if own is None else [(o.shape[1:], o.dtype) for o in own.outputs]
        )
        like = next((other for other in told if other is not None), None)
        if like is None:
            return
        if own is None:
            none = [torch.empty(0, *shape, dtype=dtype, device=device) for shape, dtype in like]
            own = Encoded(none, torch.empty(0, dtype=torch.int64, device=device))
        rows = row_layout(len(own.label))
        yield Encoded([gather_rows(o, rows) for o in own.outputs], gather_rows(own.label, rows))


def _next(
    outputs: Outputs, batches: Iterator[Batch], source: Pass, device: torch.device | str
) -> Encoded | None:
    raw = next(batches, None)
    if raw is None:
        return None
    batch = source.transform(move_data_to_device(raw, device))
    if batch.label is None or batch.label.is_floating_point() or batch.label.ndim != 1:
        got = "none" if batch.label is None else f"{batch.label.dtype} {tuple(batch.label.shape)}"
        raise ValueError(f"a probe needs one class per sample (B,), got {got}")
    return Encoded([o.float() for o in outputs(batch.views[0])], batch.label.to(torch.int64))


def _in_steps(encoded: Iterable[Encoded], batch_size: int) -> Iterator[Encoded]:
    """Regroup batches into steps of `batch_size` rows; the last one may be smaller."""
    held: Encoded | None = None
    for part in encoded:
        if held is not None:
            joined = [torch.cat(pair) for pair in zip(held.outputs, part.outputs, strict=True)]
            part = Encoded(joined, torch.cat([held.label, part.label]))
        while len(part.label) >= batch_size:
            yield _rows(part, slice(batch_size))
            part = _rows(part, slice(batch_size, None))
        held = part
    if held is not None and len(held.label):
        yield held


def _rows(part: Encoded, rows: slice) -> Encoded:
    return Encoded([o[rows] for o in part.outputs], part.label[rows])


@dataclass(frozen=True)
class Training:
    """How a probe is trained.

    Args:
        optimizer: "sgd" (momentum 0.9), "nesterov", "lars" (eta 0.001, not for biases), "larc",
            "adam" or "adamw".
        base_lr: learning rate per 256 samples of a batch; `batch_size / 256` multiplies it.
        epochs: passes over the training set.
        batch_size: samples per step, of all ranks.
        weight_decay: weight decay.
        warmup_epochs: linear warm-up before the cosine.
        milestones: epochs at which the rate becomes a tenth; none: a cosine to 0.
        every: whether the cosine moves with each "step" or "epoch".

    Raises:
        ValueError: an option is unknown, or a number out of range.
    """

    optimizer: OptimizerName = "sgd"
    base_lr: float = 0.1
    epochs: int = 100
    batch_size: int = 256
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    milestones: Sequence[int] = ()
    every: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        check_choice("every", self.every, ("step", "epoch"))
        check_at_least("epochs", self.epochs, 1)
        check_at_least("batch_size", self.batch_size, 1)

    @property
    def lr(self) -> float:
        """The learning rate of the first step after the warm-up."""
        return self.base_lr * self.batch_size / 256

    def make(self, probe: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a probe."""
        sgd = partial(torch.optim.SGD, momentum=0.9)
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "sgd": sgd,
            "nesterov": partial(sgd, nesterov=True),
            "lars": LARS,
            "larc": LARC,
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
        }
        groups: Any = probe.parameters()
        if self.optimizer in ("lars", "adamw"):
            groups = exempt_bias_and_norm(probe)
        return kinds[self.optimizer](groups, lr=self.lr, weight_decay=self.weight_decay)

    def factor(self, step: int, length: RunLength) -> float:
        """Factor of the learning rate at a step."""
        if self.milestones:
            return StepSchedule(list(self.milestones))(step, length)
        return WarmupCosine(warmup_epochs=self.warmup_epochs, every=self.every)(step, length)


def train_probes(
    module: nn.Module,
    outputs: Outputs,
    probes: Sequence[nn.Module],
    epoch: Callable[[int], Pass],
    num_samples: int,
    training: Training,
    device: torch.device | str,
) -> None:
    """Train probes by cross-entropy, each on its own output of the frozen encoder; collective.

    Args:
        module: the encoder; it is neither trained nor changed.
        outputs: a view -> one tensor (B, ...) per probe.
        probes: modules (B, ...) -> (B, C) on the device, equal on every rank; trained in place.
        epoch: the pass over the training set of an epoch, shuffled, from 0.
        num_samples: N, samples per pass.
        training: optimizer, rate and length.
        device: the encoder's device.

    Raises:
        ValueError: batch_size is larger than N, or the loss is not finite.
    """
    if training.batch_size > num_samples:
        raise ValueError(
            f"batch_size must be at most {num_samples} (the training set's size), got "
            f"{training.batch_size}; the learning rate follows it"
        )
    steps = -(-num_samples // training.batch_size)
    length = RunLength(steps * training.epochs, steps)
    optimizers = [training.make(probe.train()) for probe in probes]
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step = 0
    for number in range(training.epochs):
        encoded = encode_in_order(module, outputs, epoch(number), device)
        for batch in _in_steps(encoded, training.batch_size):
            if len(batch.label) < min(2, training.batch_size):
                continue  # a batch norm has no variance of a single row
            factor = training.factor(step, length)
            for position, (probe, optimizer) in enumerate(zip(probes, optimizers, strict=True)):
                for group, lr in zip(optimizer.param_groups, base[position], strict=True):
                    group["lr"] = lr * factor
                _step(probe, optimizer, batch.outputs[position], batch.label)
            step += 1
        if not all(p.isfinite().all() for probe in probes for p in probe.parameters()):
            raise ValueError(
                f"the probe's weights must be finite, got NaN or infinity in epoch {number}; use a "
                f"lower base_lr than {training.base_lr:g}"
            )


def _step(probe: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, label: Tensor) -> None:
    with torch.enable_grad():
        optimizer.zero_grad()
        F.cross_entropy(probe(x), label).backward()
        optimizer.step()


@torch.no_grad()
def probe_scores(
    module: nn.Module,
    outputs: Outputs,
    probes: Sequence[nn.Module],
    source: Pass,
    device: torch.device | str,
) -> tuple[list[Tensor], Tensor]:
    """Each probe's scores (m, C) of a set, and its labels (m,), of all ranks; collective."""
    scores: list[list[Tensor]] = [[] for _ in probes]
    labels = []
    for batch in encode_in_order(module, outputs, source, device):
        labels.append(batch.label)
        for probe, given, found in zip(probes, batch.outputs, scores, strict=True):
            found.append(probe.eval()(given))
    if not labels:
        raise ValueError("the query set must have samples, got none")
    return [torch.cat(found) for found in scores], torch.cat(labels)


def linear_classifier(width: int, num_classes: int, std: float, norm: bool) -> nn.Module:
    """Linear layer, after a batch norm without scale and shift if `norm` (MAE).

    Shapes: (B, D) -> (B, C).

    Args:
        width: D.
        num_classes: C.
        std: standard deviation of the initial weights; the bias is zero.
        norm: whether there is a batch norm, over the batch of all ranks.
    """
    classifier = nn.Linear(width, num_classes)
    nn.init.normal_(classifier.weight, std=std)
    nn.init.zeros_(classifier.bias)
    if not norm:
        return classifier
    return nn.Sequential(nn.BatchNorm1d(width, eps=1e-6, affine=False), classifier)
