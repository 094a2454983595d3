"""Weighted layer sum: a linear classifier on a learned mean of all layers of a frozen encoder.

Yang et al., SUPERB, Interspeech 2021, https://arxiv.org/abs/2105.01051. Reference code: s3prl/s3prl
at 04fc021, upstream/interfaces.py (Featurizer): the input and the output of each Transformer layer,
summed with softmax weights that begin equal, and trained by Adam together with the classifier.

Deviations:
    normalization: SUPERB sums the layers as they are, and `--upstream_feature_normalize` of its
        code applies a layer norm to each frame ("none" and "layer_norm"). By default each dimension
        of each layer is standardized by the training set, as in our other probes, so that one
        learning rate fits any encoder, and a weight does not make up for a layer's scale.
    classifier: one Linear; SUPERB has two without a nonlinearity between, of width 256.
    length: a fixed number of epochs; SUPERB trains 200,000 steps at 1e-4 and keeps the best on its
        development set.

Shapes: B clips, T frames, n clips or frames, L layers, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.backbones.sequence import SequenceEncoder
from sslzoo.backbones.speech import SpeechEncoder
from sslzoo.batch import Padded
from sslzoo.checks import check_at_least, check_choice
from sslzoo.eval.frames import as_padded
from sslzoo.eval.linear import checked_labels
from sslzoo.eval.protocols.probe import linear_classifier
from sslzoo.random import run_keys

Normalization = Literal["standardize", "layer_norm", "none"]


@dataclass(frozen=True)
class LayerSumTraining:
    """How a weighted layer sum is trained.

    Args:
        epochs: passes over the training set.
        lr: learning rate of Adam, constant as in SUPERB.
        batch_size: clips or frames per step.
        normalize: each dimension of each layer by the training set ("standardize"), a layer norm of
            each frame ("layer_norm"), or "none"; see the module's deviations.

    Raises:
        ValueError: a number is out of range, or the normalization is unknown.
    """

    epochs: int = 50
    lr: float = 1e-3
    batch_size: int = 32
    normalize: Normalization = "standardize"

    def __post_init__(self) -> None:
        check_at_least("epochs", self.epochs, 1)
        check_at_least("batch_size", self.batch_size, 1)
        check_choice("normalize", self.normalize, get_args(Normalization))


class LayerSum(nn.Module):
    """Sum of layers with softmax weights, and a linear classifier. Shapes: (n, L, D) -> (n, C).

    Args:
        num_layers: L.
        width: D.
        num_classes: C.
    """

    def __init__(self, num_layers: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.classifier = linear_classifier(width, num_classes, 0.01, norm=False)

    @property
    def layer_weights(self) -> Tensor:
        """Weight of each layer, (L,), of sum 1."""
        return self.weights.detach().softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.einsum("l,nld->nd", self.weights.softmax(0), x))


def stacked_layers(
    encoder: nn.Module, normalize: Normalization = "standardize"
) -> Callable[[Any], Padded]:
    """Function from a view to the frames of all layers, `Padded` (B, T, L, D).

    The layers are those of `forward_layers`: of `backbones.SpeechEncoder` the Transformer's input
    and each layer's output, the last one after a final norm; of `backbones.SequenceEncoder` the
    frames and their contexts, as in SUPERB's CPC, or the contexts alone if their widths differ. An
    encoder with `forward_frames` only has one layer.

    Args:
        encoder: the encoder.
        normalize: "layer_norm": each layer of each frame is normalized; otherwise nothing is.

    Raises:
        ValueError: the encoder has neither method; or, when called, layers differ in width.
    """
    layers: Any = getattr(encoder, "forward_layers", None)
    frames: Any = getattr(encoder, "forward_frames", None)
    if layers is None and frames is None:
        raise ValueError(
            "the encoder must have forward_layers or forward_frames for a weighted layer sum, got "
            f"{type(encoder).__name__} without them"
        )

    def stack(view: Any) -> Padded:
        if layers is None:
            made = as_padded(frames(view))
            found, lengths = [made.values], made.lengths
        else:
            found, lengths = layers(view)
            if isinstance(encoder, SpeechEncoder):
                found = [*found[:-1], encoder.transformer.finish(found[-1])]
            if (
                isinstance(encoder, SequenceEncoder)
                and encoder.frame_features != found[-1].shape[-1]
            ):
                found = found[-1:]
        widths = [layer.shape[-1] for layer in found]
        if len(set(widths)) > 1:
            raise ValueError(f"the layers must have one width for a weighted sum, got {widths}")
        x = torch.stack(found, dim=2).float()
        return Padded(F.layer_norm(x, x.shape[3:]) if normalize == "layer_norm" else x, lengths)

    return stack


def mean_of_frames(made: Padded) -> Tensor:
    """Mean over each sequence's own frames. Shapes: `Padded` (B, T, D) -> (B, D)."""
    return (made.values * made.mask[..., None]).sum(1) / made.lengths.clamp_min(1)[:, None]


def fit_layer_sum(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    training: LayerSumTraining | None = None,
    seed: int = 0,
) -> LayerSum:
    """Train the weights of layers and the classifier together by cross-entropy.

    It is a function of its arguments alone: every rank that has all rows gets the same result.

    Args:
        x: (n, L, D), normalized.
        labels: (n,) classes.
        num_classes: C.
        training: rate and length.
        seed: determines the initial classifier and the order of the rows.

    Returns:
        The trained module, on the device of `x`.

    Raises:
        ValueError: labels do not fit the features or classes; NaN or infinity.
    """
    training = training or LayerSumTraining()
    labels = checked_labels("weighted layer sum", x.flatten(1), labels, num_classes)
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(seed)
        probe = LayerSum(x.shape[1], x.shape[2], num_classes).to(x.device)
        optimizer = torch.optim.Adam(probe.parameters(), lr=training.lr)
        for epoch in range(training.epochs):
            order = run_keys(seed, "layer_sum", epoch).permutation("order", len(x))[0]
            for rows in order.to(x.device).split(training.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(probe(x[rows]), labels[rows]).backward()
                optimizer.step()
    if not all(p.isfinite().all() for p in probe.parameters()):
        raise ValueError(
            f"the probe's weights must be finite, got NaN or infinity; use a lower lr than "
            f"{training.lr:g}"
        )
    return probe.eval()
