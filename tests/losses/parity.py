"""One process and many: the comparison that every loss goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import Ranks

COUNTS = [(3, 3), (4, 2), (1, 5), (2, 1, 3)]  # rows of each rank, six in all


def value_and_gradients(
    loss: Callable[..., Tensor], tensors: Sequence[Tensor], num_leaves: int
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients by the first `num_leaves` of the tensors."""
    leaves = [x.detach().clone().requires_grad_(i < num_leaves) for i, x in enumerate(tensors)]
    value = loss(*leaves)
    value.backward()
    grads = [leaf.grad for leaf in leaves[:num_leaves]]
    assert all(grad is not None for grad in grads)
    return value.detach(), grads  # type: ignore[return-value]


def assert_compiles(
    loss: Callable[..., Tensor], tensors: Sequence[Tensor], num_leaves: int
) -> None:
    """The loss is one graph, whose value and gradients are those of the loss as written."""
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = value_and_gradients(compiled, tensors, num_leaves)
    torch.testing.assert_close(got, value_and_gradients(loss, tensors, num_leaves))


def _on_rank(
    rank: int,
    loss: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    num_leaves: int,
    counts: tuple[int, ...],
) -> tuple[Tensor, list[Tensor]]:
    return value_and_gradients(loss, [x.split(counts)[rank] for x in tensors], num_leaves)


def assert_ranks_equal_one(
    ranks: Ranks,
    loss: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    num_leaves: int,
    counts: tuple[int, ...],
) -> None:
    """Mean of the ranks' losses, and of their gradients, are those of one process.

    Args:
        ranks: the fixture.
        loss: of tensors with one row a sample; picklable.
        tensors: the global batch in float64, cut into `counts` rows a rank.
        num_leaves: how many of the tensors get a gradient.
        counts: rows of each rank.
    """
    one, wanted = value_and_gradients(loss, tensors, num_leaves)
    results = ranks(len(counts), _on_rank, loss, tensors, num_leaves, counts)
    mean = torch.stack([value for value, _ in results]).mean()
    torch.testing.assert_close(mean, one, rtol=1e-7, atol=1e-12)
    for i, want in enumerate(wanted):
        got = torch.cat([grads[i] for _, grads in results]) / len(counts)
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-12)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple) else (out,):
            if isinstance(part, Tensor):
                self.numel = max(self.numel, part.numel())
        return out
