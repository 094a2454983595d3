"""Distill: train a student on a fine-tuned teacher's probabilities, without labels.

SimCLR v2's third step: Chen, Kornblith, Swersky, Norouzi and Hinton, NeurIPS 2020,
https://arxiv.org/abs/2006.10029, section 2 and equation 3. In self-distillation, the student has
the teacher's architecture. Reference code: none in google-research/simclr's training scripts at
commit 383d414.

Deviations:
    1. The weighted sum with the labels' cross-entropy (equation 4) is left out: the paper reports
       equation 3 alone unless it says otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.eval.classifier import Classifier
from sslzoo.eval.downstream import RANDOM, Downstream, only_view, start_from
from sslzoo.losses import soft_cross_entropy
from sslzoo.optim import Schedule, all_alike
from sslzoo.trainable import GroupsFactory, OptimizerFactory


class Distill(Downstream):
    """Distillation by cross-entropy between the teacher's and the student's probabilities.

    Args:
        model: the student.
        teacher: the teacher, in eval mode and never trained.
        teacher_weights: the fine-tuned run's checkpoint, or "random", which leaves those of
            `teacher` as they are; required by `fit`.
        temperature: temperature of both softmaxes; the paper's is 0.1 for a teacher tuned on 1 %
            of labels, 1 on 10 %.
        weights: the student's initial weights: a checkpoint for `load_weights`, or "random", which
            leaves those of `model` as they are.
        optimizer: see `Trainable`; LARS in the paper.
        schedule: see `Trainable`.
        parameter_groups: see `Trainable`.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> student, teacher = (Classifier(SmallResNet((8, 16)), 3) for _ in range(2))
        >>> method = Distill(student, teacher, teacher_weights="random")
        >>> batch = Batch([torch.rand(4, 3, 8, 8)], torch.arange(4))
        >>> list(method.losses(batch))
        ['distillation']
    """

    def __init__(
        self,
        model: Classifier,
        teacher: Classifier,
        teacher_weights: str | None = None,
        temperature: float = 1.0,
        weights: str = RANDOM,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(model, weights, optimizer, schedule, parameter_groups)
        classes = model.classifier.out_features, teacher.classifier.out_features
        if classes[0] != classes[1]:
            raise ValueError(
                "student and teacher must have equally many classes, got "
                f"{classes[0]} and {classes[1]}"
            )
        self.teacher = teacher.requires_grad_(False)
        self.teacher_weights, self.temperature = teacher_weights, temperature

    def frozen(self) -> nn.Module:
        return self.teacher

    def load_initial_weights(self) -> None:
        super().load_initial_weights()
        start_from(self.teacher, self.teacher_weights, "teacher_weights", whole=True)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        x = only_view(batch, "Distill")
        with torch.no_grad():
            target = self.teacher(x)  # (B, C)
        return {"distillation": soft_cross_entropy(self.model(x), target, self.temperature)}
