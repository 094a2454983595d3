"""Protocols on sentence benchmarks in their official files: STS 2012 to 2017 and SentEval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.inputs import TextInput
from sslzoo.data.loader import EvalLoader
from sslzoo.data.text.benchmarks import Pairs, Task, read_senteval, read_sts
from sslzoo.eval.features import extract, gather_features
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.protocols.accuracy import top_k
from sslzoo.eval.protocols.logistic import logistic_scores
from sslzoo.eval.similarity import spearman
from sslzoo.random import run_keys
from sslzoo.runs.protocols.base import Protocol, Subject
from sslzoo.runs.results import Metrics


class _Lines:
    """Sentences as batches of the encoder's views."""

    def __init__(self, lines: Sequence[str], preprocess: TextInput) -> None:
        self.lines, self.preprocess = lines, preprocess

    def __len__(self) -> int:
        return len(self.lines)

    def __getitems__(self, index: list[int]) -> Batch:
        tokens = self.preprocess([self.lines[i] for i in index])
        return Batch([tokens], torch.tensor(index))


def sentence_features(subject: Subject, lines: Sequence[str], batch_size: int) -> Tensor:
    """Features of sentences on every rank, (N, D) in order; each distinct one is encoded once.

    Raises:
        ValueError: the encoder is not one of text, or records no preprocessing.
    """
    if not isinstance(subject.preprocess, TextInput):
        got = "none" if subject.preprocess is None else type(subject.preprocess).__name__
        raise ValueError(f"the encoder must record a preprocessing of text, got {got}")
    distinct = {line: row for row, line in enumerate(dict.fromkeys(lines))}
    source = _Lines(list(distinct), subject.preprocess)
    loaders = EvalLoaders(
        bank=EvalLoader(source, batch_size),
        query=None,
        transform=lambda batch: batch,
        num_classes=None,
        sharded=True,
    )
    own = extract(subject.encoder, loaders.bank, loaders, device=subject.device)
    features = gather_features(own).features
    return features[torch.tensor([distinct[line] for line in lines], device=features.device)]


def pearson(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation in [-1, 1]; 0 if all of x or all of y are equal. Shapes: (n,), (n,)."""
    a, b = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-12))


def sts_figures(cosines: Sequence[Tensor], scores: Sequence[Tensor]) -> Metrics:
    """Spearman's and Pearson's correlations of one year's parts.

    `all` is the correlation over the pairs of all parts together, `mean` the mean of the parts',
    `wmean` that weighted by the numbers of pairs. SentEval reports `mean` and `wmean`; papers since
    SimCSE `all` of Spearman (Gao et al., EMNLP 2021, https://arxiv.org/abs/2104.08821, appendix B).

    Args:
        cosines: per part, (n,) rounded to six digits, so that equal sentences tie.
        scores: per part, (n,).
    """
    cosines = [(cosine.double() * 1e6).round() for cosine in cosines]
    counts = torch.tensor([len(score) for score in scores], dtype=torch.float64)
    figures = {}
    for name, of in (("spearman", spearman), ("pearson", pearson)):
        parts = torch.tensor([of(c, s) for c, s in zip(cosines, scores, strict=True)]).double()
        figures[f"{name}_all"] = of(torch.cat(list(cosines)), torch.cat(list(scores)))
        figures[f"{name}_mean"] = float(parts.mean())
        figures[f"{name}_wmean"] = float((parts * counts).sum() / counts.sum())
    return figures


@dataclass(frozen=True)
class Sts(Protocol):
    """Semantic similarity on STS 2012 to 2017: cosines of frozen features against scores.

    Args:
        root: folder of the years, such as SentEval's data/downstream/STS.
        batch_size: sentences per batch.
    """

    root: str = ""
    batch_size: int = 128
    needs_data = False

    def check(self) -> None:
        read_sts(self.root)

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        figures: Metrics = {}
        years = read_sts(self.root)
        lines = [
            line
            for year in years.values()
            for pairs in year.values()
            for line in (*pairs.first, *pairs.second)
        ]
        features = F.normalize(sentence_features(subject, lines, self.batch_size).double(), dim=1)
        start = 0
        for name, year in years.items():
            cosines, scores = [], []
            for pairs in year.values():
                cosine, start = _cosine(features, start, pairs)
                cosines.append(cosine)
                scores.append(torch.tensor(pairs.score, dtype=torch.float64, device=cosine.device))
            figures |= {f"sts{name}_{k}": v for k, v in sts_figures(cosines, scores).items()}
        if len(years) > 1:
            of_years = [figures[f"sts{name}_spearman_all"] for name in years]
            figures["average"] = sum(of_years) / len(of_years)
        return figures


def _cosine(features: Tensor, start: int, pairs: Pairs) -> tuple[Tensor, int]:
    n = len(pairs.first)
    first, second = features[start : start + n], features[start + n : start + 2 * n]
    return (first * second).sum(1), start + 2 * n


@dataclass(frozen=True)
class SentEval(Protocol):
    """Logistic regression on frozen features for the tasks of SentEval that a folder has.

    Tasks without a test set (MR, CR, SUBJ, MPQA) have the mean accuracy of ten folds. Pairs of
    sentences are (|u - v|, u * v).

    Args:
        root: SentEval's data/downstream.
        tasks: names of tasks; None: all that the folder has.
        l2: see `logistic_scores`.
        folds: number of folds.
        batch_size: sentences per batch.
    """

    root: str = ""
    tasks: Sequence[str] | None = None
    l2: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)
    folds: int = 10
    batch_size: int = 128
    needs_data = False

    def check(self) -> None:
        self._read()

    def _read(self) -> dict[str, Task]:
        found = read_senteval(self.root)
        if self.tasks is None:
            return found
        missing = sorted(set(self.tasks) - found.keys())
        if missing or not self.tasks:
            raise ValueError(f"tasks must be among {sorted(found)} of this folder, got {missing}")
        return {name: found[name] for name in self.tasks}

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        figures: Metrics = {}
        for name, task in self._read().items():
            x = self._features(subject, task.train)
            labels = torch.tensor(task.train_labels, device=x.device)
            if task.test is None:
                figures[name] = self._folds(x, labels, task.classes, seed)
            else:
                asked = self._features(subject, task.test)
                scores = logistic_scores(x, labels, asked, task.classes, self.l2)
                truth = torch.tensor(task.test_labels, device=x.device)
                figures[name] = top_k(scores, truth)
        figures["average"] = math.fsum(figures.values()) / len(figures)
        return figures

    def _features(self, subject: Subject, rows: Sequence[tuple[str, ...]]) -> Tensor:
        columns = [
            sentence_features(subject, list(column), self.batch_size)
            for column in zip(*rows, strict=True)
        ]
        if len(columns) == 1:
            return columns[0]
        return torch.cat([(columns[0] - columns[1]).abs(), columns[0] * columns[1]], dim=1)

    def _folds(self, x: Tensor, labels: Tensor, num_classes: int, seed: int) -> float:
        """Mean accuracy of folds that have the same share of each class."""
        if len(labels) < 2 * self.folds:
            raise ValueError(
                f"a task must have at least {2 * self.folds} sentences for {self.folds} folds, got "
                f"{len(labels)}"
            )
        order = run_keys(seed, "folds").permutation("order", len(labels))[0].to(labels.device)
        order = order[labels[order].argsort(stable=True)]
        fold = torch.empty_like(labels)
        fold[order] = torch.arange(len(labels), device=labels.device) % self.folds
        values = []
        for number in range(self.folds):
            held = fold == number
            scores = logistic_scores(x[~held], labels[~held], x[held], num_classes, self.l2)
            values.append(top_k(scores, labels[held]))
        return sum(values) / len(values)
