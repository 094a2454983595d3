"""Batch norm over the global batch or equal groups of it, for any ranks.

Groups reproduce the per-GPU batch norm of the papers' code: the global batch, in rank order, is
split into G blocks of N / G rows, and each is normalized by its own statistics. So a result depends
on the number of groups, not on the number of GPUs.

Deviations: with G > 1 the running statistics are updated with the mean over groups of the groups'
means and variances (DataParallel uses its first replica's, DistributedDataParallel rank 0's).

Shapes: n rows of this rank, N of all ranks, C channels, G groups, S positions of a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslzoo.checks import check_at_least
from sslzoo.distributed import Rows, gather_rows, rank, row_layout, sum_over_ranks, world_size


class Part(NamedTuple):
    """The local rows start..stop of one group."""

    group: int
    start: int
    stop: int


class GlobalBatchNorm(_BatchNorm):
    """Batch norm with the statistics of the global batch, or of G groups of it.

    The input is (n, C), (n, C, L), (n, C, H, W) or (n, C, D, H, W). The state dict is that of
    torch's batch norms. Ranks may have different numbers of rows. Every rank must call it.

    Args:
        num_features: C.
        eps: value added to the variance.
        momentum: weight of the new statistics in the running ones; None: 1 / number of batches, a
            cumulative average, as `torch.optim.swa_utils.update_bn` sets it.
        affine: whether to learn weight and bias.
        track_running_stats: whether to keep running statistics for evaluation.
        groups: G, which must divide N. G > 1 exchanges row counts on the host.
        drop: module applied to the result (timm's BatchNormAct2d has one).
        act: module applied last.

    Raises:
        ValueError: G is less than 1 or does not divide N.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        groups: int = 1,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        check_at_least("groups", groups, 1)
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.groups = groups
        self.drop = drop
        self.act = act

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        of_batch = self.training or self.running_mean is None
        if of_batch and (self.groups > 1 or world_size() > 1):
            out = self._normalize(input)
        else:
            tracked = self.track_running_stats or not self.training
            out = F.batch_norm(
                input,
                self.running_mean if tracked else None,
                self.running_var if tracked else None,
                self.weight,
                self.bias,
                of_batch,
                self._update_weight(),
                self.eps,
            )
        if self.drop is not None:
            out = self.drop(out)
        return out if self.act is None else self.act(out)

    def _normalize(self, input: Tensor) -> Tensor:
        rows = row_layout(len(input)) if self.groups > 1 else None
        parts = group_parts(len(input), self.groups, rows)
        if rows is not None and whole_groups(rows, self.groups):
            out, mean, var = self._group_by_group(input, parts)
        else:
            out, mean, var = _Normalize.apply(
                input, self.weight, self.bias, self.eps, self.groups, parts
            )
        if self.training and self.running_mean is not None and self.running_var is not None:
            weight = self._update_weight()
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
                self.running_var.lerp_(var.to(self.running_var.dtype), weight)
        return out  # type: ignore[no-any-return]

    def _update_weight(self) -> float:
        """Weight of this batch's statistics in the running ones."""
        if self.momentum is not None:
            return self.momentum
        if not self.training or self.num_batches_tracked is None:
            return 0.0
        return 1.0 / float(self.num_batches_tracked)  # torch's reads it on the host, too

    def _group_by_group(
        self, input: Tensor, parts: tuple[Part, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Apply torch's batch norm to each group, if every group is on a single rank."""
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        moments = torch.zeros(2, self.groups, self.num_features, dtype=dtype, device=input.device)
        done = []
        for g, start, stop in parts:
            mean, var = moments[:, g]
            rows = input[start:stop]
            done.append(F.batch_norm(rows, mean, var, self.weight, self.bias, True, 1.0, self.eps))
        mean, var = sum_over_ranks(moments.sum(dim=1)) / self.groups  # 0 for other ranks' groups
        if not done:  # without rows, the parameters still need (zero) gradients
            done = [F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)]
        return torch.cat(done), mean, var

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.dim() <= 5 or input.shape[1] != self.num_features:
            raise ValueError(
                f"the input must be (n, {self.num_features}) with up to three more dimensions, got "
                f"{tuple(input.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


def whole_groups(rows: Rows, groups: int) -> bool:
    """Whether every group has several rows, all on one rank; equal on all ranks."""
    size = rows.total // groups
    return size > 1 and all(n % size == 0 for n in rows.counts)


def group_parts(n: int, groups: int, rows: Rows | None = None) -> tuple[Part, ...]:
    """This rank's rows by group of the global batch.

    Args:
        n: number of rows of this rank.
        groups: G, the number of equal contiguous blocks of the N rows in rank order.
        rows: row counts of all ranks; None: exchanged if G > 1.

    Raises:
        ValueError: G does not divide N.
    """
    if groups == 1:
        return (Part(0, 0, n),)
    rows = rows or row_layout(n)
    if rows.total % groups:
        raise ValueError(f"groups must divide the global batch of {rows.total}, got {groups}")
    size = rows.total // groups
    edges = [(g, g * size - rows.start, (g + 1) * size - rows.start) for g in range(groups)]
    clipped = [Part(g, max(start, 0), min(stop, n)) for g, start, stop in edges]
    return tuple(part for part in clipped if part.start < part.stop)


def _channels(x: Tensor, like: Tensor) -> Tensor:
    """Reshape (C,) to (1, C, 1, ...), with the number of dimensions of `like`."""
    return x.view(1, -1, *[1] * (like.dim() - 2))


class _Normalize(torch.autograd.Function):
    """Normalize (n, C, ...); also return the mean over groups of mean and variance, (C,) each.

    The forward gathers (count, mean, squared deviations) per group, whose combination is accurate
    for any offset of the data (Chan, Golub and LeVeque, 1979). The backward needs one sum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        groups: int,
        parts: tuple[Part, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, mean, var = _global_statistics(x, groups, parts)
        out = torch.empty_like(x)
        for g, start, stop in parts:
            out[start:stop] = F.batch_norm(
                x[start:stop], mean[g], var[g], weight, bias, False, 0.0, eps
            )
        ctx.parts = parts
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        unbiased = var * (count / (count - 1).clamp_min(1))
        mean, var = mean.mean(dim=0), unbiased.mean(dim=0)
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors  # scale: 1 / std, (G, C)
        grad = grads[0]
        sums = x.new_zeros(2, *mean.shape, dtype=mean.dtype)  # of grad, of grad * (x - mean)
        dims = [d for d in range(x.dim()) if d != 1]
        for g, start, stop in ctx.parts:
            here = grad[start:stop].to(mean.dtype)
            sums[0, g] = here.sum(dims)
            sums[1, g] = (here * (x[start:stop] - _channels(mean[g], x))).sum(dims)
        grad_weight = (sums[1] * scale).sum(dim=0).to(weight.dtype) if weight is not None else None
        grad_bias = sums[0].sum(dim=0).to(x.dtype if weight is None else weight.dtype)
        grad_bias = grad_bias if ctx.has_bias else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, None, None, None
        total = sum_over_ranks(sums)
        gain = scale if weight is None else scale * weight
        slope = -gain * scale.square() * total[1] / count
        shift = -gain * total[0] / count - slope * mean
        out = torch.empty_like(x)
        for g, start, stop in ctx.parts:
            linear = torch.addcmul(
                _channels(shift[g], x), x[start:stop].to(mean.dtype), _channels(slope[g], x)
            )
            out[start:stop] = linear.addcmul_(
                grad[start:stop].to(mean.dtype), _channels(gain[g], x)
            )
        return out, grad_weight, grad_bias, None, None, None


def _global_statistics(
    x: Tensor, groups: int, parts: tuple[Part, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts (G, 1), means (G, C) and biased variances (G, C) per group over all ranks."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels = x.shape[1]
    local = x.new_zeros(1, groups, 1 + 2 * channels, dtype=dtype)
    dims = [d for d in range(x.dim()) if d != 1]
    for g, start, stop in parts:
        rows = x[start:stop].to(dtype)
        count = rows.numel() // channels
        if count == 0:
            continue
        var, mean = torch.var_mean(rows, dim=dims, correction=0)
        local[0, g, :1].fill_(count)
        local[0, g, 1 : 1 + channels] = mean
        local[0, g, 1 + channels :] = var * count
    one_each = Rows((1,) * world_size(), rank(), world_size())
    counts, means, squares = gather_rows(local, one_each).split([1, channels, channels], dim=-1)
    total = counts.sum(dim=0)
    mean = (means * counts).sum(dim=0) / total
    square = (squares + counts * (means - mean).square()).sum(dim=0)
    return total, mean, square / total
