"""Collectives: rank, world size, gathers and sums; `sharding` alone uses torch.distributed, too.

A single process is the case W = 1 of every function here. Shapes: W ranks, rank r holds
n_r rows, N = sum of n_r. The rule of the losses: rank r returns L_r such that the mean of L_r
over ranks is the loss of the global batch; the backward of a gather SUMS over ranks and keeps
the own rows; DDP's mean then makes every gradient that of one process on the global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as funcol
from torch.nn.parallel import DistributedDataParallel

_host_groups: dict[Any, Any] = {}  # default group -> gloo group of the same ranks
_imagined: list[int] = []  # numbers of ranks of `imagined_ranks`, the innermost last


@contextmanager
def imagined_ranks(count: int) -> Iterator[None]:
    """Context manager in which this process is rank 0 of others that are not there.

    Collectives give the shapes that they would have, for tensors on the meta device.

    Args:
        count: number of ranks.
    """
    _imagined.append(count)
    try:
        yield
    finally:
        _imagined.pop()


def is_distributed() -> bool:
    """Whether a process group of more than one rank is running."""
    if _imagined:
        return _imagined[-1] > 1
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    if _imagined:
        return _imagined[-1]
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() and not _imagined else 0


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


def _host_group() -> Any:
    """Create, once, a group that exchanges host values without a device synchronization."""
    default = dist.group.WORLD
    if dist.get_backend() == "gloo":
        return default
    if default not in _host_groups:
        _host_groups.clear()
        _host_groups[default] = dist.new_group(backend="gloo")
    return _host_groups[default]


def gather_objects(value: Any) -> list[Any]:
    """Gather every rank's small host value in rank order; [value] on one process."""
    if _imagined or not is_distributed():
        return [value] * world_size()
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, value, group=_host_group())
    return out


class Rows(NamedTuple):
    """Positions of this rank's rows in the global batch.

    Attributes:
        counts: n_r of every rank.
        start: number of rows before this rank's.
        total: N.
    """

    counts: tuple[int, ...]
    start: int
    total: int

    @property
    def own(self) -> slice:
        """Slice of this rank's rows among the N."""
        return slice(self.start, self.start + self.counts[rank()])


def row_layout(n: int) -> Rows:
    """Exchange the row counts of all ranks on the host (no device synchronization).

    Args:
        n: number of rows on this rank.
    """
    if _imagined or not is_distributed():
        return Rows((n,) * world_size(), 0, n * world_size())
    mine = torch.tensor([n])
    all_counts = torch.empty(world_size(), dtype=torch.int64)
    dist.all_gather_single(all_counts, mine, group=_host_group())
    counts = tuple(all_counts.tolist())
    return Rows(counts, sum(counts[: rank()]), sum(counts))


def _gather(x: Tensor, rows: Rows) -> Tensor:
    """Gather (n_r, ...) -> (N, ...) in rank order, padding uneven row counts."""
    if _imagined:
        return x.new_empty(rows.total, *x.shape[1:])
    longest = max(rows.counts)
    if x.shape[0] < longest:
        x = torch.cat([x, x.new_zeros(longest - x.shape[0], *x.shape[1:])])
    out = funcol.all_gather_single(x.contiguous(), 0, _world())
    if isinstance(out, funcol.AsyncCollectiveTensor):
        out = out.wait()
    if min(rows.counts) == longest:
        return out
    return torch.cat([out[r * longest : r * longest + n] for r, n in enumerate(rows.counts)])


def _sum(x: Tensor) -> Tensor:
    if _imagined:
        return x.clone()
    out = funcol.all_reduce(x.contiguous(), "sum", _world())
    return out.wait() if isinstance(out, funcol.AsyncCollectiveTensor) else out


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:
        ctx.own = rows.own
        return _gather(x, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return _sum(grads[0])[ctx.own], None


class _SumWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return _sum(grads[0])


def gather(x: Tensor, rows: Rows | None = None) -> Tensor:
    """Gather all ranks' rows with gradient: backward sums over ranks and keeps the own rows.

    Args:
        x: (n_r, ...), any n_r.
        rows: result of `row_layout(len(x))`, to exchange the counts once for several gathers.

    Returns:
        (N, ...) in rank order; x itself on one process.
    """
    if not is_distributed():
        return x
    return _GatherWithGradient.apply(x, rows or row_layout(x.shape[0]))  # type: ignore[no-any-return]


@torch.no_grad()
def gather_rows(x: Tensor, rows: Rows | None = None) -> Tensor:
    """Gather without gradient, for memories, indices and evaluation."""
    if not is_distributed():
        return x.detach()
    return _gather(x.detach(), rows or row_layout(x.shape[0]))


def global_sum(x: Tensor) -> Tensor:
    """Sum over ranks with gradient: backward sums the ranks' gradients. Shapes: any."""
    if not is_distributed():
        return x
    return _SumWithGradient.apply(x)  # type: ignore[no-any-return]


@torch.no_grad()
def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over ranks without gradient. Shapes: any."""
    return _sum(x.detach()) if is_distributed() else x.detach()


@torch.no_grad()
def pass_on(x: Tensor) -> Tensor:
    """Send x to the next rank, the last one's to the first, and return that of the one before.

    Without gradient. Shapes: any, the same on every rank.
    """
    if _imagined or not is_distributed():
        return x.detach()
    sent, received = x.detach().contiguous(), torch.empty_like(x, requires_grad=False)
    after, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, sent, after), dist.P2POp(dist.irecv, received, before)]
    ):
        work.wait()
    return received


@torch.no_grad()
def broadcast_(x: Tensor, source: int = 0) -> Tensor:
    """Overwrite x on every rank with rank `source`'s value."""
    if is_distributed() and not _imagined:
        dist.broadcast(x, source)
    return x


def barrier() -> None:
    """Wait for every rank."""
    if is_distributed() and not _imagined:
        dist.barrier(group=_host_group())


def agree_on_step(step: int) -> int | None:
    """Agree on the step at which all ranks stop, without a collective in any other step.

    Each rank calls it at the end of each step, from when it was asked to stop. No rank can end the
    step behind the one at which the last rank was asked before it knows all the others' steps.

    Args:
        step: number of optimizer steps that this rank has taken.

    Returns:
        The step after which all ranks stop; None until every rank was asked.
    """
    if not is_distributed():
        return step
    store = dist.distributed_c10d._get_default_store()
    names = [f"sslzoo/stop/{r}" for r in range(world_size())]
    if not store.check([names[rank()]]):
        store.set(names[rank()], str(step))
    if not store.check(names):
        return None
    return max(int(store.get(name)) for name in names) + 1


class _FixedBuckets:
    """A reducer of DDP that never rebuilds its buckets."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


def keep_buckets(model: Any) -> None:
    """Keep DDP's buckets of gradients as they are, on more than two ranks.

    DDP rebuilds them after the first step of a process, in the order in which the gradients came.
    Of more than two ranks, the order of a sum depends on a gradient's place in its bucket, so the
    step behind a resume would be rounded differently from that of the unbroken run.

    Args:
        model: any module; only `DistributedDataParallel` has buckets.
    """
    if isinstance(model, DistributedDataParallel) and world_size() > 2:
        model.reducer = _FixedBuckets(model.reducer)  # type: ignore[assignment]


def is_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed because another rank has ended or its node is not reached."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
