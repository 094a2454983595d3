"""EMA: update teachers as exponential moving averages of their students.

Once per optimizer step, one `_foreach_lerp_` updates every parameter of the method's
(student, teacher) pairs. Only parameters are updated: the teacher's batch-norm statistics are its
own, as in MoCo, BYOL and DINO, and integer buffers are left unchanged. Of a sharded method, each
rank updates its shards.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sslzoo.callbacks.rehearsal import require
from sslzoo.checks import check_interval
from sslzoo.optim import RunLength, Schedule, as_schedule
from sslzoo.sharding import local, reshard


class Student(Protocol):
    """Protocol of the methods that `EMA` accepts: module pairs and a step counter."""

    step: int
    run_length: RunLength

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]: ...


class EMA(Callback):
    """Update teacher <- momentum * teacher + (1 - momentum) * student at each step.

    Args:
        momentum: a schedule or a number; the update of step k uses momentum(k).
        when: "after_step": after the optimizer has updated the student (BYOL, DINO);
            "before_forward": at the start of the step, toward the current weights (MoCo).
        copy_buffers: whether the student's buffers and frozen parameters are copied (data2vec for
            speech).
    """

    def __init__(
        self,
        momentum: Schedule | float,
        when: Literal["after_step", "before_forward"],
        copy_buffers: bool = False,
    ):
        if when not in ("after_step", "before_forward"):
            raise ValueError(f"when must be 'after_step' or 'before_forward', got {when!r}")
        self.momentum, self.when = as_schedule(momentum), when
        self.copy_buffers = copy_buffers
        self._done = -1  # the last step that was applied
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def update(self, method: Student, step: int) -> None:
        """Apply the update of optimizer step `step`; a plain loop calls it once per step."""
        reshard(cast(nn.Module, method))
        students, teachers = self._pairs or self._parameters(method)
        weight = 1.0 - self._momentum(method, step)
        torch._foreach_lerp_(teachers, students, weight)
        for student, teacher in method.teacher_pairs() if self.copy_buffers else ():
            theirs = {**dict(teacher.named_buffers()), **dict(teacher.named_parameters())}
            for name, value in (*student.named_buffers(), *student.named_parameters()):
                if not value.requires_grad:
                    theirs[name].copy_(value)

    def _momentum(self, method: Student, step: int) -> float:
        momentum = self.momentum(step, method.run_length)
        check_interval("momentum of the teacher", momentum, 0, 1)
        return momentum

    def _parameters(self, method: Student) -> tuple[list[Tensor], list[Tensor]]:
        students: list[Tensor] = []
        teachers: list[Tensor] = []
        for student, teacher in method.teacher_pairs():
            theirs = dict(teacher.named_parameters())
            ours = dict(student.named_parameters())
            if theirs.keys() != ours.keys():
                odd = sorted(theirs.keys() ^ ours.keys())
                raise ValueError(
                    "student and teacher must have the same parameters, got only in one of them: "
                    f"{odd[:5]}"
                )
            students += map(local, ours.values())
            teachers += (local(theirs[name]) for name in ours)
        return students, teachers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "EMA", "teacher_pairs", "step", "run_length")
        method = cast(Student, pl_module)
        if not method.teacher_pairs():
            raise ValueError(
                f"the module must have a teacher for EMA, got {type(method).__name__} without one"
            )
        callbacks = getattr(trainer, "callbacks", [])
        count = sum(isinstance(callback, EMA) for callback in callbacks)
        if count > 1:
            raise ValueError(
                f"EMA must be given once, since {type(method).__name__} brings its own, got "
                f"{count}; set the method's momentum instead"
            )
        self._done = method.step - 1
        self._momentum(method, method.step)  # refuses, for example, epochs of unknown length
        self._pairs = self._parameters(method)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        method = cast(Student, pl_module)
        if self.when == "before_forward" and method.step > self._done:
            self.update(method, method.step)
            self._done = method.step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = cast(Student, pl_module)
        if self.when == "after_step" and method.step - 1 > self._done:
            self._done = method.step - 1
            self.update(method, self._done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pairs = None
