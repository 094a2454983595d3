"""Instance discrimination: noise-contrastive estimation or a softmax over a memory bank.

Wu, Xiong, Yu and Lin, CVPR 2018, https://arxiv.org/abs/1805.01978, equations 2, 7 and 9.
Reference code: zhirongw/lemniscate.pytorch, lib/NCEAverage.py, NCECriterion.py, LinearAverage.py;
for `sampled_softmax` HobbitLong/CMC, NCE/NCECriterion.py. CMC gives each loss the features of one
view and the bank of another.

Deviations:
    normalizing constant: estimated over the global batch; the reference code runs in one
        process. `proximal` is the paper's term, which the reference code does not have.

Shapes: n local rows, N global rows, M bank rows, K negatives, D width. Neither the (n, K + 1, D)
sampled rows nor the (n, M) logits exist as a whole: the gradient is formed in the forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.distributed import row_layout, sum_over_ranks, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast

# Numbers in one block. Small enough for the cores' caches on a CPU, few launches on a GPU.
_ROWS_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 26}  # sampled rows times D
_LOGITS_BLOCK = {"cpu": 1 << 24, "cuda": 1 << 26}  # batch rows times M
# Up to this many bank rows a sampled one, the product with the whole bank is the faster way to
# the sampled logits: two cores, B = 256, D = 128, K = 4096 break even at M = 50,000.
_DENSE = 12

# Rows of the batch, their dot products (b, K + 1), and weights (b, K + 1) -> weighted rows (b, D).
_Block = tuple[slice, Tensor, Callable[[Tensor], Tensor]]


def nce_constant(f: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    """The normalizing constant Z: M times the mean of exp(f v / T) over the global batch.

    Finite in float32 for temperatures of at least 1 / 88.

    Args:
        f: (n, D) features, L2-normalized by the caller.
        bank: (M, D) memory.
        index: (n, K + 1) sampled bank rows, column 0 the rows' own.
        temperature: the paper has 0.07.

    Returns:
        Scalar without gradient, the same on every rank.
    """
    _check(f, bank, index, temperature)
    with torch.no_grad(), no_autocast(f):
        f = at_least_float32(f)
        sums = f.new_zeros(2)
        for rows, sampled in _sampled_blocks(f, bank, index):
            dots = torch.bmm(sampled, f[rows, :, None])
            sums[0] += (dots / temperature).exp().sum()
        sums[1].fill_(index.numel())
        total, count = sum_over_ranks(sums)
        return total / count * len(bank)


def nce(
    f: Tensor,
    bank: Tensor,
    index: Tensor,
    z_constant: Tensor | float,
    temperature: float,
    eps: float = 1e-7,
) -> Tensor:
    """Noise-contrastive estimation against K samples of uniform noise.

    With P = exp(f v / T) / Z and noise c = K / M, a row's loss is
    -log(P_0 / (P_0 + c + eps)) - sum over k of log(c / (P_k + c + eps)).

    Args:
        f: (n, D) features, L2-normalized by the caller.
        bank: (M, D) memory, of any floating type; a constant.
        index: (n, K + 1) bank rows: column 0 the rows' own, then K uniform draws.
        z_constant: Z, from `nce_constant` of the first batch.
        temperature: T; the paper has 0.07.
        eps: the reference code's.

    Returns:
        Scalar, a sum over K and a mean over the batch; its mean over ranks is the loss of the
        global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check(f, bank, index, temperature)
    if index.shape[1] < 2:
        raise ValueError(f"index has {index.shape[1]} columns, wanted the own one and negatives")
    with no_autocast(f):
        f = at_least_float32(f)
        z = z_constant if isinstance(z_constant, Tensor) else f.new_full((), z_constant)
        log_z = z.to(f.dtype).log()
        scale = world_size() / row_layout(len(f)).total
        with_gradient = torch.is_grad_enabled() and f.requires_grad
        return _NCE.apply(f, bank, index, log_z, temperature, eps, scale, with_gradient)  # type: ignore[no-any-return]


def sampled_softmax(f: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Cross entropy of a row's own memory among K sampled ones and itself.

    Args:
        f: (n, D) features, L2-normalized by the caller.
        bank: (M, D) memory, of any floating type; a constant.
        index: (n, K + 1) bank rows: column 0 the rows' own, then K draws.
        temperature: T; CMC has 0.07.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check(f, bank, index, temperature)
    with no_autocast(f):
        f = at_least_float32(f)
        scale = world_size() / row_layout(len(f)).total
        with_gradient = torch.is_grad_enabled() and f.requires_grad
        return _SampledSoftmax.apply(f, bank, index, temperature, scale, with_gradient)  # type: ignore[no-any-return]


def bank_softmax(f: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Cross entropy of a row's own memory among all M.

    Args:
        f: (n, D) features, L2-normalized by the caller.
        bank: (M, D) memory, of any floating type; a constant.
        index: (n,) the rows' own bank rows.
        temperature: T; the paper has 0.07, the reference code 0.1 on CIFAR-10.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check(f, bank, index[:, None], temperature)
    with no_autocast(f):
        f = at_least_float32(f)
        scale = world_size() / row_layout(len(f)).total
        with_gradient = torch.is_grad_enabled() and f.requires_grad
        return _BankSoftmax.apply(f, bank, index, temperature, scale, with_gradient)  # type: ignore[no-any-return]


def proximal(f: Tensor, old_rows: Tensor) -> Tensor:
    """Mean over the global batch of ||f - v||^2, v the rows' memory before this step.

    Args:
        f: (n, D) features, L2-normalized by the caller.
        old_rows: (n, D), without gradient.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    if f.dim() != 2 or f.shape != old_rows.shape:
        shapes = f"{tuple(f.shape)} and {tuple(old_rows.shape)}"
        raise ValueError(f"proximal takes two (n, D) tensors of one shape, got {shapes}")
    difference = at_least_float32(f) - at_least_float32(old_rows)
    return difference.square().sum() * (world_size() / row_layout(len(f)).total)


def _check(f: Tensor, bank: Tensor, index: Tensor, temperature: float) -> None:
    if f.dim() != 2 or bank.dim() != 2 or f.shape[1] != bank.shape[1]:
        shapes = f"{tuple(f.shape)} and {tuple(bank.shape)}"
        raise ValueError(f"features (n, D) and a bank (M, D) of one width wanted, got {shapes}")
    if index.dim() != 2 or len(index) != len(f):
        raise ValueError(f"index has {tuple(index.shape)}, wanted {len(f)} rows of bank positions")
    if not temperature > 0:
        raise ValueError(f"the loss divides by a temperature above 0, got {temperature}")


def _sampled_blocks(f: Tensor, bank: Tensor, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Pairs of a slice of the batch and its sampled bank rows (b, K + 1, D), in f's precision."""
    limit = _ROWS_BLOCK.get(f.device.type, _ROWS_BLOCK["cpu"])
    step = max(1, limit // max(1, index.shape[1] * f.shape[1]))
    for start in range(0, len(f), step):
        rows = slice(start, start + step)
        sampled = bank.index_select(0, index[rows].flatten()).to(f.dtype)
        yield rows, sampled.unflatten(0, (-1, index.shape[1]))


class _NCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        f: Tensor,
        bank: Tensor,
        index: Tensor,
        log_z: Tensor,
        temperature: float,
        eps: float,
        scale: float,
        with_gradient: bool,
    ) -> Tensor:
        num_negatives = index.shape[1] - 1
        noise = num_negatives / len(bank)
        log_noise = torch.log(log_z.new_full((), noise + eps))
        offset = log_z + log_noise  # of the logit log(P / (noise + eps))
        total = f.new_zeros(())
        grad = torch.empty_like(f) if with_gradient else None
        for rows, dots, product in _walk(f, bank, index):
            logits = dots / temperature - offset
            sign = torch.ones_like(logits[:1])
            sign[:, 0] = -1
            total = total + F.softplus(sign * logits).sum()
            if grad is not None:
                grad[rows] = product(sign * (sign * logits).sigmoid())
        # log(c / (P + c + eps)) is log(c / (c + eps)) below the softplus, for each negative
        constant = torch.log1p(log_z.new_full((), eps / noise)) * (num_negatives * len(f))
        if grad is not None:
            ctx.save_for_backward(grad.mul_(scale / temperature))
        return (total + constant) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grads[0] * grad, None, None, None, None, None, None, None


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        f: Tensor,
        bank: Tensor,
        index: Tensor,
        temperature: float,
        scale: float,
        with_gradient: bool,
    ) -> Tensor:
        total = f.new_zeros(())
        grad = torch.empty_like(f) if with_gradient else None
        for rows, dots, product in _walk(f, bank, index):
            log_p = (dots / temperature).log_softmax(dim=1)
            total = total - log_p[:, 0].sum()
            if grad is not None:
                weights = log_p.exp_()
                weights[:, 0] -= 1
                grad[rows] = product(weights)
        if grad is not None:
            ctx.save_for_backward(grad.mul_(scale / temperature))
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grads[0] * grad, None, None, None, None, None


def _walk(f: Tensor, bank: Tensor, index: Tensor) -> Iterator[_Block]:
    """The faster of the two ways to the sampled dot products."""
    walk = _dense if len(bank) <= _DENSE * index.shape[1] else _sampled
    return walk(f, bank, index)


def _sampled(f: Tensor, bank: Tensor, index: Tensor) -> Iterator[_Block]:
    """Blocks by gathering the sampled rows."""
    for rows, sampled in _sampled_blocks(f, bank, index):
        dots = torch.bmm(sampled, f[rows, :, None])[:, :, 0]
        yield rows, dots, partial(_weigh_sampled, sampled)


def _dense(f: Tensor, bank: Tensor, index: Tensor) -> Iterator[_Block]:
    """Blocks through all (b, M) dot products, which cost less than gathering many rows."""
    bank = bank.to(f.dtype)
    limit = _LOGITS_BLOCK.get(f.device.type, _LOGITS_BLOCK["cpu"])
    step = max(1, limit // len(bank))
    for start in range(0, len(f), step):
        rows = slice(start, start + step)
        here, every = index[rows], f[rows] @ bank.T
        yield rows, every.gather(1, here), partial(_weigh_dense, every, here, bank)


def _weigh_sampled(sampled: Tensor, weights: Tensor) -> Tensor:
    return torch.bmm(weights[:, None], sampled)[:, 0]


def _weigh_dense(buffer: Tensor, index: Tensor, bank: Tensor, weights: Tensor) -> Tensor:
    return buffer.zero_().scatter_add_(1, index, weights) @ bank


class _BankSoftmax(torch.autograd.Function):
    """Block by block of the bank, with a running maximum: each bank row is read once."""

    @staticmethod
    def forward(
        ctx: Any,
        f: Tensor,
        bank: Tensor,
        index: Tensor,
        temperature: float,
        scale: float,
        with_gradient: bool,
    ) -> Tensor:
        own = bank.index_select(0, index).to(f.dtype)
        scaled = f / temperature
        positive = (scaled * own).sum(dim=1, keepdim=True)
        top = positive  # a value that the maximum cannot be below
        norm = torch.zeros_like(top)
        mean = torch.zeros_like(f)  # of the bank under the softmax, times norm
        limit = _LOGITS_BLOCK.get(f.device.type, _LOGITS_BLOCK["cpu"]) // 4
        step = max(256, limit // max(1, len(f)))
        for start in range(0, len(bank), step):
            block = bank[start : start + step].to(f.dtype)
            logits = scaled @ block.T
            new_top = torch.maximum(top, logits.amax(dim=1, keepdim=True))
            weight = logits.sub_(new_top).exp_()
            fade = (top - new_top).exp()
            norm = norm * fade + weight.sum(dim=1, keepdim=True)
            if with_gradient:
                mean = torch.addmm(mean * fade, weight, block)
            top = new_top
        if with_gradient:
            ctx.save_for_backward((mean / norm - own) * (scale / temperature))
        return (top + norm.log() - positive).sum() * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grads[0] * grad, None, None, None, None, None
