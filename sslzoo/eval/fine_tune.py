"""FineTune: train a classifier with labels, from pre-trained or random weights.

Semi-supervised learning is fine-tuning on a data module with `train_fraction` 0.01 or 0.1: a
subset with the same fraction of each class, identical in every run.
SimCLR v2: Chen, Kornblith, Swersky, Norouzi and Hinton, NeurIPS 2020,
https://arxiv.org/abs/2006.10029. Reference code: google-research/simclr, commit 383d414.

Deviations:
    1. The labeled subsets of ImageNet are drawn by `train_fraction`; the authors' are the lists
       imagenet2012_subset/1pct and 10pct of TensorFlow Datasets.
"""

from __future__ import annotations

from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.checks import check_classes
from sslzoo.eval.classifier import Classifier
from sslzoo.eval.downstream import Downstream, only_view
from sslzoo.eval.mixing import Mixed, Mixing
from sslzoo.losses import cross_entropy
from sslzoo.optim import Schedule, all_alike
from sslzoo.trainable import GroupsFactory, OptimizerFactory


class FineTune(Downstream):
    """Supervised training of a classifier by cross-entropy.

    `sslzoo.callbacks.OnlineAccuracy` measures its accuracy.

    Args:
        model: the classifier.
        weights: initial weights of `fit`: a checkpoint or .safetensors for `load_weights`, or
            "random", which leaves those of `model` as they are.
        train_backbone: False freezes the backbone in eval mode, which is the linear protocol.
        label_smoothing: see `losses.cross_entropy`; 0 in SimCLR.
        mixing: mixup or CutMix of images and labels (`Mixing`); None: no mixing.
        optimizer: see `Trainable`; LARS without weight decay in SimCLR v2.
        schedule: see `Trainable`; a cosine without warm-up in SimCLR v2.
        parameter_groups: see `Trainable`; `optim.exempt_bias_norm_and_classifier` in SimCLR.

    Example:
        >>> import torch
        >>> from sslzoo.backbones import SmallResNet
        >>> method = FineTune(Classifier(SmallResNet((8, 16)), num_classes=3), "random")
        >>> batch = Batch([torch.rand(4, 3, 8, 8)], torch.arange(4), torch.tensor([0, 1, 2, 0]))
        >>> list(method.losses(batch))
        ['cross_entropy']
    """

    uses_labels = True

    def __init__(
        self,
        model: Classifier,
        weights: str | None = None,
        train_backbone: bool = True,
        label_smoothing: float = 0.0,
        mixing: Mixing | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(model, weights, optimizer, schedule, parameter_groups)
        self.train_backbone = train_backbone
        self.label_smoothing, self.mixing = label_smoothing, mixing
        if not train_backbone:
            model.backbone.requires_grad_(False)

    def frozen(self) -> nn.Module | None:
        return None if self.train_backbone else self.model.backbone

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        view = only_view(batch, "FineTune")
        label = check_classes("FineTune", batch.label)  # (B,)
        mixed = Mixed(view, 1.0, label)
        if self.mixing is not None:
            mixed = self.mixing(view, label, self.seed, self.step)
        logits = self.model(mixed.images)  # (B, C)
        loss = mixed.loss(lambda y: cross_entropy(logits, y, self.label_smoothing), label)
        return {"cross_entropy": loss}
