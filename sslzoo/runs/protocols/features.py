"""Protocols on features of a data module's images, sounds or sentences, computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sslzoo.checks import check_at_least, check_classes
from sslzoo.distributed import gather_rows, row_layout
from sslzoo.eval.features import Features, gather_features
from sslzoo.eval.frames import extract_frames
from sslzoo.eval.linear import standardize
from sslzoo.eval.protocols.accuracy import Rule, classification, mean_average_precision
from sslzoo.eval.protocols.clustering import clustering
from sslzoo.eval.protocols.logistic import SWEEP, logistic_scores
from sslzoo.eval.protocols.probe import linear_classifier
from sslzoo.eval.suite import Suite
from sslzoo.random import rows_per_class, run_keys
from sslzoo.runs.protocols.base import Protocol, Subject, mean_and_std
from sslzoo.runs.results import Metrics


@dataclass(frozen=True)
class SuiteOf(Protocol):
    """Protocols of `Suite` with a paper's settings.

    Args:
        suite: the settings; see `Suite`.
    """

    suite: Suite = dataclasses.field(default_factory=Suite)

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        bank, query = subject.features("bank"), subject.features("query")
        return self.suite(bank, query, subject.num_classes(), seed)


@dataclass(frozen=True)
class Knn(Protocol):
    """Weighted kNN with a paper's k and temperature, on all labels.

    Args:
        k: numbers of neighbors; those above the training set's size are refused.
        temperature: temperature of the vote.
    """

    k: Sequence[int] = (10, 20, 100, 200)
    temperature: float = 0.07

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        suite = Suite(["knn"], self.k, (self.temperature,), top5=subject.num_classes() > 5)
        found = SuiteOf(suite)(subject, seed)
        return {name.removeprefix("knn_"): value for name, value in found.items()}


@dataclass(frozen=True)
class FewLabels(Protocol):
    """kNN and logistic regression on frozen features with a fraction of the labels.

    Args:
        fraction: fraction of each class's labels.
        k: numbers of neighbors.
        l2: see `logistic_scores`.
    """

    fraction: float = 0.01
    k: Sequence[int] = (10,)
    l2: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        return SuiteOf(Suite(["knn", "linear"], self.k, l2=self.l2, train_fraction=self.fraction))(
            subject, seed
        )


@dataclass(frozen=True)
class LowShot(Protocol):
    """Logistic regression on k labeled samples per class, for several draws of them.

    Args:
        shots: numbers of samples per class.
        draws: number of draws per number; the metrics are their mean and deviation.
        l2: L2 weight beside the mean loss.
    """

    shots: Sequence[int] = (1, 2, 5)
    draws: int = 3
    l2: float = 1e-2

    def __post_init__(self) -> None:
        check_at_least("the number of shots", min(self.shots, default=0), 1)
        check_at_least("draws", self.draws, 1)

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        bank, labels, query, truth = _classes(subject)
        num_classes = subject.num_classes()
        figures: Metrics = {}
        for k in self.shots:
            counts = labels.bincount(minlength=num_classes)
            if int(counts.min()) < k:
                raise ValueError(
                    f"each class must have at least {k} training samples for {k} shots, got "
                    f"{int(counts.min())} of class {int(counts.argmin())}"
                )
            rows = []
            for draw in range(self.draws):
                chosen = rows_per_class(labels, k, seed * self.draws + draw)
                scores = logistic_scores(
                    bank[chosen], labels[chosen], query, num_classes, [self.l2]
                )
                found = classification(scores, truth)
                rows.append({f"shots{k}_{n}": v for n, v in found.items()})
            figures |= mean_and_std(rows)
        return figures


def _classes(subject: Subject) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and classes of all ranks: bank, labels, query, labels."""
    parts = []
    for name in ("bank", "query"):
        own = subject.features(name)
        every = gather_features(own._replace(label=check_classes(f"the {name} set", own.label)))
        parts += [every.features, cast(Tensor, every.label).to(torch.int64)]
    return parts[0], parts[1], parts[2], parts[3]


@dataclass(frozen=True)
class Transfer(Protocol):
    """Logistic regression with a sweep of the L2 weight: top-1, top-5, per class, or mAP.

    Labels of one class per sample give `top1`, `top5` and `per_class`; labels (B, C) of
    several classes give `map`.

    Args:
        l2: the weights, chosen on held-out training samples.
        rule: interpolation of the average precision, see `average_precision`.
    """

    l2: Sequence[float] = SWEEP
    rule: Rule = "eleven_points"

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        bank, query = (gather_features(subject.features(name)) for name in ("bank", "query"))
        num_classes = subject.num_classes()
        if bank.label is None or query.label is None:
            raise ValueError("both sets must have labels for this protocol, got none")
        known, truth = bank.label, query.label
        several = known.ndim == 2 and known.shape[1] > 1
        if not several:
            known, truth = (check_classes("this protocol", label) for label in (known, truth))
        scores = logistic_scores(bank.features, known, query.features, num_classes, self.l2)
        if several:
            return {"map": mean_average_precision(scores, truth, self.rule)}
        return classification(scores, truth.to(torch.int64))


@dataclass(frozen=True)
class Clustering(Protocol):
    """k-means with as many clusters as classes: NMI, ARI and Hungarian accuracy.

    Args:
        restarts: see `clustering`.
    """

    restarts: int = 10

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        return clustering(subject.features("query"), subject.num_classes(), seed, self.restarts)


@dataclass(frozen=True)
class Phones(Protocol):
    """Linear classification of each frame's phone from alignments (`data.LibriSpeech(phones=)`).

    Args:
        epochs: passes over the training frames.
        lr: learning rate of Adam.
        batch_size: frames per step.
    """

    epochs: int = 20
    lr: float = 1e-4
    batch_size: int = 1024

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        loaders = subject.loaders()
        if loaders.query is None:
            raise ValueError("the data must have a query set (validation or test), got none")
        sets = []
        for loader in (loaders.bank, loaders.query):
            own = extract_frames(subject.encoder, loader, loaders, subject.device)
            every = gather_frames(own)
            sets.append((every.features, cast(Tensor, every.label).to(torch.int64)))
        (x, labels), (asked, truth) = sets
        x, asked = standardize(x, asked)
        with torch.random.fork_rng([]), torch.enable_grad():
            torch.manual_seed(seed)
            probe = linear_classifier(x.shape[1], subject.num_classes(), 0.01, norm=False)
            probe = probe.to(x.device)
            optimizer = torch.optim.Adam(probe.parameters(), lr=self.lr)
            for epoch in range(self.epochs):
                order = run_keys(seed, "phones", epoch).permutation("order", len(x))[0]
                for rows in order.to(x.device).split(self.batch_size):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(probe(x[rows]), labels[rows]).backward()
                    optimizer.step()
        with torch.no_grad():
            found = classification(probe(asked), truth)
        return {"top1": found["top1"], "per_class": found["per_class"]}


def gather_frames(own: Features) -> Features:
    """All ranks' frames on every rank: by sequence, each sequence's in order. (n, D) -> (N, D)."""
    assert own.label is not None
    rows = row_layout(len(own.index))
    index, order = gather_rows(own.index, rows).sort(stable=True)
    return Features(
        gather_rows(own.features, rows)[order], gather_rows(own.label, rows)[order], index
    )
