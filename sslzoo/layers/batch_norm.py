"""Batch norm over the global batch, or over G equal groups of it, on any number of ranks; or none.

Groups stand for what the papers' code got from per-GPU batch norm: the global batch, in rank
order, is cut into G blocks of N / G rows, and each is normalized by its own statistics. So a
figure belongs to a number of groups and not to a number of GPUs.

Deviations: with G > 1 the running statistics move toward the MEAN over groups of the groups'
means and variances (DataParallel keeps its first replica's, DistributedDataParallel rank 0's).

Shapes: n rows of this rank, N of all ranks, C channels, G groups, S positions of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslzoo.distributed import Rows, gather_rows, rank, row_layout, sum_over_ranks, world_size

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_WITH_ACTIVATION = (BatchNormAct2d, SyncBatchNormAct)


class Part(NamedTuple):
    """Local rows start..stop, which belong to one group."""

    group: int
    start: int
    stop: int


class GlobalBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of the global batch, or of G groups of it.

    Input (n, C), (n, C, L), (n, C, H, W) or (n, C, D, H, W). State and parameters are those of
    torch's batch norms. Ranks may hold different numbers of rows. Every rank must call it.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: share of the new statistics in the running ones.
        affine: whether there are weight and bias.
        track_running_stats: whether there are running statistics for evaluation.
        groups: G; must divide N. More than one costs an exchange of row counts on the host.
        drop: applied to the result (timm's BatchNormAct2d has one).
        act: applied last.

    Raises:
        ValueError: for fewer than one group, a momentum of None, or N not divisible by G.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        groups: int = 1,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        if momentum is None:
            raise ValueError("GlobalBatchNorm takes a momentum in 0..1, got None")
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
            assert self.momentum is not None
            tracked = self.track_running_stats or not self.training
            out = F.batch_norm(
                input,
                self.running_mean if tracked else None,
                self.running_var if tracked else None,
                self.weight,
                self.bias,
                of_batch,
                self.momentum,
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
            assert self.momentum is not None
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
        return out  # type: ignore[no-any-return]

    def _group_by_group(
        self, input: Tensor, parts: tuple[Part, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each group by torch's own batch norm, where every group is on one rank as a whole."""
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        moments = torch.zeros(2, self.groups, self.num_features, dtype=dtype, device=input.device)
        done = []
        for g, start, stop in parts:
            mean, var = moments[:, g]
            rows = input[start:stop]
            done.append(F.batch_norm(rows, mean, var, self.weight, self.bias, True, 1.0, self.eps))
        mean, var = sum_over_ranks(moments.sum(dim=1)) / self.groups  # of other ranks' groups: 0
        if not done:  # no rows here: the parameters' gradients are zeros
            done = [F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)]
        return torch.cat(done), mean, var

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.dim() <= 5 or input.shape[1] != self.num_features:
            wanted = f"(n, {self.num_features}) with up to three more dimensions"
            raise ValueError(f"GlobalBatchNorm takes {wanted}, got {tuple(input.shape)}")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


def whole_groups(rows: Rows, groups: int) -> bool:
    """Whether no group is spread over ranks, nor of one row alone: the same answer on each."""
    size = rows.total // groups
    return size > 1 and all(n % size == 0 for n in rows.counts)


def group_parts(n: int, groups: int, rows: Rows | None = None) -> tuple[Part, ...]:
    """This rank's rows by group of the global batch; one group needs no exchange.

    Args:
        n: rows of this rank.
        groups: G, equal contiguous blocks of the N rows in rank order.
        rows: of all ranks, if known.

    Raises:
        ValueError: where G does not divide N.
    """
    if groups == 1:
        return (Part(0, 0, n),)
    rows = rows or row_layout(n)
    if rows.total % groups:
        raise ValueError(f"a global batch of {rows.total} does not divide into {groups} groups")
    size = rows.total // groups
    edges = [(g, g * size - rows.start, (g + 1) * size - rows.start) for g in range(groups)]
    clipped = [Part(g, max(start, 0), min(stop, n)) for g, start, stop in edges]
    return tuple(part for part in clipped if part.start < part.stop)


def _channels(x: Tensor, like: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...) as `like` has dimensions."""
    return x.view(1, -1, *[1] * (like.dim() - 2))


class _Normalize(torch.autograd.Function):
    """(n, C, ...) -> the same normalized, and the statistics of the groups' mean, both (C,).

    One gather of (count, mean, squared deviations) a group in the forward, whose combination is
    exact for any offset of the data (Chan, Golub and LeVeque, 1979); one sum in the backward.
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
        x, weight, mean, scale, count = ctx.saved_tensors  # scale: 1 / deviation, (G, C)
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
    """Counts (G, 1), means and biased variances (G, C) of the groups over all ranks."""
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


def convert_batch_norm(module: nn.Module, groups: int = 1) -> nn.Module:
    """Put a `GlobalBatchNorm` in place of every batch norm of `module`, in place.

    Parameters, buffers, their names and the mode stay; timm's BatchNormAct2d keeps its
    activation.

    Args:
        module: any network.
        groups: of the global batch, see `GlobalBatchNorm`.

    Returns:
        `module`, or its replacement where it is a batch norm itself.

    Raises:
        ValueError: for a class of batch norm that is not torch's, timm's or ours.
    """
    return _convert(module, partial(_global, groups=groups), {})


def convert_to_group_norm(module: nn.Module, groups: int = 16) -> nn.Module:
    """Take the batch out: group norm for every batch norm, weight standardization, in place.

    Richemond et al., "BYOL works even without batch statistics", 2020,
    https://arxiv.org/abs/2010.10241. Every torch.nn.Conv2d becomes timm's StdConv2d, whose filters
    have mean 0 and variance 1 (Qiao et al., 2019, https://arxiv.org/abs/1903.10520). Parameters and
    their names stay; running statistics go.

    Args:
        module: any network, not yet given to an optimizer.
        groups: of channels; must divide their number everywhere.

    Returns:
        `module`, or its replacement where it is a batch norm or a convolution itself.

    Raises:
        ValueError: for a batch norm with an activation in it, or channels that do not divide.
    """
    return _convert(module, partial(_batch_independent, groups=groups), {})


def _convert(
    module: nn.Module,
    replace: Callable[[nn.Module], nn.Module],
    done: dict[nn.Module, nn.Module],
) -> nn.Module:
    if module not in done:
        done[module] = replace(module)
        if done[module] is module:
            for name, child in module._modules.items():
                if child is not None:
                    setattr(module, name, _convert(child, replace, done))
    return done[module]


def _batch_independent(old: nn.Module, groups: int) -> nn.Module:
    if type(old) is nn.Conv2d:
        conv = StdConv2d(
            old.in_channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            old.dilation,
            old.groups,
            bias=False,
            device="meta",  # draws nothing: the weights are the old ones
        )
        conv.weight, conv.bias = old.weight, old.bias
        return conv.train(old.training)
    if not isinstance(old, _BatchNorm):
        return old
    acts = getattr(old, "drop", None) is not None or getattr(old, "act", None) is not None
    if type(old) not in (*_PLAIN, GlobalBatchNorm) or acts:
        known = "batch norms of torch and GlobalBatchNorm without activation"
        raise ValueError(f"convert_to_group_norm knows {known}, got {type(old).__qualname__}")
    if old.num_features % groups:
        raise ValueError(f"{old.num_features} channels do not divide into {groups} groups")
    norm = nn.GroupNorm(groups, old.num_features, old.eps, affine=False)
    norm.affine, norm.weight, norm.bias = old.affine, old.weight, old.bias
    return norm.train(old.training)


def _global(old: nn.Module, groups: int) -> nn.Module:
    if not isinstance(old, _BatchNorm):
        return old
    if type(old) not in (*_PLAIN, *_WITH_ACTIVATION, GlobalBatchNorm):
        known = "torch's BatchNorm and SyncBatchNorm, timm's BatchNormAct2d and GlobalBatchNorm"
        raise ValueError(f"convert_batch_norm knows {known}, got {type(old).__qualname__}")
    new = GlobalBatchNorm(
        old.num_features,
        old.eps,
        old.momentum,  # type: ignore[arg-type]
        affine=False,
        track_running_stats=False,
        groups=groups,
        drop=getattr(old, "drop", None),
        act=getattr(old, "act", None),
    )
    new.affine, new.track_running_stats = old.affine, old.track_running_stats
    new.weight, new.bias = old.weight, old.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        new.register_buffer(name, getattr(old, name))
    return new.train(old.training)
