"""Protocols of speech encoders: the weighted sum of all layers, for clips and for frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics.functional.text import word_error_rate

from sslzoo.batch import Padded
from sslzoo.checks import check_classes
from sslzoo.distributed import gather_objects
from sslzoo.eval.features import Features, gather_features
from sslzoo.eval.frames import extract_frames
from sslzoo.eval.linear import standardize
from sslzoo.eval.protocols.accuracy import classification
from sslzoo.eval.protocols.layer_sum import (
    LayerSumTraining,
    fit_layer_sum,
    mean_of_frames,
    stacked_layers,
)
from sslzoo.runs.protocols.base import Protocol, Subject
from sslzoo.runs.protocols.features import gather_frames
from sslzoo.runs.results import Metrics


def phone_error_rate(predicted: Tensor, truth: Tensor, clip: Tensor) -> float:
    """Edits per reference phone between sequences of frames, each run of equal frames being one.

    Frames without a label count for neither sequence, and end a run. A phone that no frame's center
    meets is in no reference.

    Args:
        predicted: (n,) int64 class of each frame, in the order of time within a clip.
        truth: (n,) int64, -1 where there is no label.
        clip: (n,) the clip of each frame; its frames are consecutive.

    Returns:
        Substitutions, deletions and insertions of all clips over all reference phones.

    Raises:
        ValueError: no frame has a label.

    Example:
        >>> import torch
        >>> truth = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> phone_error_rate(torch.tensor([0, 1, 1, 1, 2, 0]), truth, torch.zeros(6))
        0.3333333432674408
    """
    if not (truth >= 0).any():
        raise ValueError("at least one frame must have a label, got none")
    counts = torch.unique_consecutive(clip, return_counts=True)[1].tolist()
    predicted = torch.where(truth >= 0, predicted, -1)
    told, known = ([_runs(own) for own in frames.split(counts)] for frames in (predicted, truth))
    return word_error_rate(told, known).item()


def _runs(frames: Tensor) -> str:
    """The classes of the runs of equal frames, separated by blanks."""
    return " ".join(str(x) for x in torch.unique_consecutive(frames).tolist() if x >= 0)


class _Sets:
    """The layers of both sets, (n, L, D) of all ranks, and their classes.

    Args:
        subject: the encoder and its data.
        training: its normalization counts.
    """

    def __init__(self, subject: Subject, training: LayerSumTraining) -> None:
        self.subject, self.training = subject, training
        self.stack = stacked_layers(subject.encoder, training.normalize)
        self.num_layers = 0
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def flat(self, view: Any) -> Padded:
        """Frames of all layers, `Padded` (B, T, L D)."""
        made = self.stack(view)
        self.num_layers = made.values.shape[2]
        return made._replace(values=made.values.flatten(2))

    def add(self, every: Features, label: Tensor) -> None:
        """Keep a set of all ranks."""
        known = gather_objects(self.num_layers)  # 0 where a rank has no batch
        x = every.features.unflatten(1, (max(known), -1))
        self.rows.append((x, label.to(torch.int64), every.index))

    def scores(self, seed: int) -> tuple[Tensor, Metrics]:
        """Scores of the query set after training on labeled rows, and the weights of layers."""
        (x, labels, _), (asked, _, _) = self.rows
        x, labels = x[labels >= 0], labels[labels >= 0]
        if self.training.normalize == "standardize":
            x, asked = standardize(x, asked)
        probe = fit_layer_sum(x, labels, self.subject.num_classes(), self.training, seed)
        with torch.no_grad():
            scores = probe(asked)
        return scores, {f"layer{i}_weight": w for i, w in enumerate(probe.layer_weights.tolist())}


@dataclass(frozen=True)
class LayerSumOfClips(Protocol):
    """Classification of clips (keywords, speakers) by the mean over time of a weighted layer sum.

    The layers of all clips are in memory: clips x layers x width x 4 bytes.

    Args:
        training: rate, length and normalization; see `LayerSumTraining`.
    """

    training: LayerSumTraining = field(default_factory=LayerSumTraining)

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        sets = _Sets(subject, self.training)
        for name in ("bank", "query"):
            own = subject.features(name, lambda view: mean_of_frames(sets.flat(view)))
            every = gather_features(own._replace(label=check_classes(f"the {name} set", own.label)))
            sets.add(every, cast(Tensor, every.label))
        scores, weights = sets.scores(seed)
        return classification(scores, sets.rows[1][1]) | weights


@dataclass(frozen=True)
class LayerSumOfFrames(Protocol):
    """Classification of frames (phones) by a weighted layer sum, and the phone error rate.

    Labels are alignments (`AudioFolder(alignments=)`) or one per frame (`LibriSpeech(phones=)`).
    The layers of all labeled frames are in memory: frames x layers x width x 4 bytes.

    Args:
        training: rate, length and normalization; see `LayerSumTraining`.
    """

    training: LayerSumTraining = field(
        default_factory=lambda: LayerSumTraining(epochs=20, batch_size=1024)
    )

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        loaders = subject.loaders()
        if loaders.query is None:
            raise ValueError("the data must have a query set (validation or test), got none")
        sets = _Sets(subject, self.training)
        for loader, unlabeled in ((loaders.bank, False), (loaders.query, True)):
            own = extract_frames(
                *(subject.encoder, loader, loaders, subject.device), sets.flat, unlabeled
            )
            every = gather_frames(own)
            sets.add(every, cast(Tensor, every.label))
        scores, weights = sets.scores(seed)
        _, truth, clip = sets.rows[1]
        figures = classification(scores[truth >= 0], truth[truth >= 0])
        figures["phone_error_rate"] = phone_error_rate(scores.argmax(1), truth, clip)
        return figures | weights
