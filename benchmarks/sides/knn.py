"""kNN: class of each query by the weighted vote of its k nearest rows, temperature 0.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.rounds import Rounds

TEMPERATURE = 0.1


def _data(
    bank: int, queries: int, dim: int, classes: int, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """L2-normalized bank (bank, dim), queries (queries, dim) around class centers, bank labels."""
    draw = torch.Generator().manual_seed(0)
    center = 0.35 * torch.randn(classes, dim, generator=draw)
    labels = torch.randint(classes, (bank + queries,), generator=draw)
    x = center[labels] + torch.randn(bank + queries, dim, generator=draw)
    x = torch.nn.functional.normalize(x, dim=1).to(device)
    return x[:bank], x[bank:], labels[:bank].to(device)


def ours(
    rounds: Rounds, bank: int, queries: int, dim: int, classes: int, k: int, device: str = "cpu"
) -> None:
    from sslzoo.eval.knn import knn_predict

    rows, asked, labels = _data(bank, queries, dim, classes, device)

    def work() -> dict[str, Any]:
        best = knn_predict(asked, rows, labels, classes, k, TEMPERATURE).argmax(1)
        return {"predicted": best.tolist()} if rounds.number == 0 else {}

    rounds.repeat(work, queries)


def lightly(
    rounds: Rounds, bank: int, queries: int, dim: int, classes: int, k: int, device: str = "cpu"
) -> None:
    """`knn_predict` on batches of 512, the batch size of lightly's CIFAR-10 benchmark."""
    from lightly.utils.benchmarking import knn_predict

    rows, asked, labels = _data(bank, queries, dim, classes, device)
    columns = rows.T.contiguous()

    def work() -> dict[str, Any]:
        parts = asked.split(512)
        found = [knn_predict(x, columns, labels, classes, k, TEMPERATURE)[:, 0] for x in parts]
        return {"predicted": torch.cat(found).tolist()} if rounds.number == 0 else {}

    rounds.repeat(work, queries)
