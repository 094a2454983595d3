"""Instance discrimination: noise-contrastive estimation or a softmax over a memory bank.

Wu, Xiong, Yu and Lin, CVPR 2018, https://arxiv.org/abs/1805.01978, equations 2, 7 and 9.
Reference code: zhirongw/lemniscate.pytorch, lib/NCEAverage.py, NCECriterion.py, LinearAverage.py;
for `sampled_softmax` HobbitLong/CMC, NCE/NCECriterion.py. CMC gives each loss the features of one
view and the bank of another.

Deviations:
    normalizing constant: estimated over the global batch; the reference code runs in one
        process. `proximal` is the paper's term, which the reference code does not have.

Shapes: n local rows, N global rows, M bank rows, K negatives, D width. Neither the (n, K + 1, D)
sampled rows nor the (n, M) logits are kept: the gradient is formed in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_positive, check_same_shape, shapes
from sslzoo.distributed import row_layout, sum_over_ranks, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import attach_gradient, entries_per_block, needs_gradient
from sslzoo.losses.online_softmax import online_softmax

# Entries per block: small enough for the cores' caches on a CPU, few launches on a GPU.
_ROWS_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 26}  # sampled rows times D
_LOGITS_BLOCK = {"cpu": 1 << 24, "cuda": 1 << 26}  # batch rows times M
# With at most this many bank rows per sampled row, the product with the whole bank is the faster
# way to the sampled logits: two cores, B = 256, D = 128, K = 4096 break even at M = 50,000.
_DENSE = 12

# A slice of the batch, its dot products (b, K + 1), and weights (b, K + 1) -> weighted sums (b, D).
_Block = tuple[slice, Tensor, Callable[[Tensor], Tensor]]


def nce_constant(
    f: Tensor, bank: Tensor, index: Tensor, temperature: float, num_data: int | None = None
) -> Tensor:
    """Normalizing constant Z: M times the global batch's mean of exp(f v / T).

    Finite in float32 for temperatures of at least 1 / 88.

    Args:
        f: (n, D) features, L2-normalized by the caller.
        bank: (M, D) memory bank.
        index: (n, K + 1) sampled bank rows, column 0 the positives.
        temperature: T; 0.07 in the paper.
        num_data: M of the formula; None: the number of the bank's rows. With a queue it is the
            number of training samples.

    Returns:
        Scalar without gradient, the same on every rank.
    """
    _check(f, bank, index, temperature)
    with torch.no_grad(), no_autocast(f):
        f = at_least_float32(f)
        sums = f.new_zeros(2)
        for rows, sampled in _sampled_rows(f, bank, index):
            dots = torch.bmm(sampled, f[rows, :, None])
            sums[0] += (dots / temperature).exp().sum()
        sums[1].fill_(index.numel())
        total, count = sum_over_ranks(sums)
        return total / count * (len(bank) if num_data is None else num_data)


def nce(
    f: Tensor,
    bank: Tensor,
    index: Tensor,
    z_constant: Tensor | float,
    temperature: float,
    eps: float = 1e-7,
    num_data: int | None = None,
) -> Tensor:
    """Noise-contrastive estimation against K samples of uniform noise.

    With P = exp(f v / T) / Z and noise c = K / M, a row's loss is
    -log(P_0 / (P_0 + c + eps)) - sum over k of log(c / (P_k + c + eps)).

    Args:
        f: (n, D) features, L2-normalized by the caller.
        bank: (M, D) memory bank, of any floating type; a constant.
        index: (n, K + 1) bank rows: column 0 the positives, then K uniform draws.
        z_constant: Z, from `nce_constant` of the first batch.
        temperature: T; 0.07 in the paper.
        eps: 1e-7 in the reference code.
        num_data: M of the noise c; see `nce_constant`.

    Returns:
        Scalar, a sum over K and a mean over the batch; its mean over ranks is the loss of the
        global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check(f, bank, index, temperature)
    if index.shape[1] < 2:
        raise ValueError(f"index must have 1 + K >= 2 columns, got {index.shape[1]}")
    K = index.shape[1] - 1
    with no_autocast(f):
        f = at_least_float32(f)
        z = z_constant if isinstance(z_constant, Tensor) else f.new_full((), z_constant)
        log_z = z.to(f.dtype).log()
        c = K / (len(bank) if num_data is None else num_data)
        offset = log_z + torch.log(log_z.new_full((), c + eps))

        def terms(scores: Tensor) -> tuple[Tensor, Tensor]:
            logits = scores - offset  # log(P / (c + eps))
            sign = torch.ones_like(logits[:1])
            sign[:, 0] = -1
            return F.softplus(sign * logits).sum(), sign * (sign * logits).sigmoid()

        # log(c / (P + c + eps)) is log(c / (c + eps)) below the softplus, for each negative
        constant = torch.log1p(log_z.new_full((), eps / c)) * (K * len(f))
        return _sampled_loss(f, bank, index, temperature, terms, constant)


def sampled_softmax(f: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each row's positive among it and K sampled bank rows.

    Args:
        f: (n, D) features, L2-normalized by the caller.
        bank: (M, D) memory bank, of any floating type; a constant.
        index: (n, K + 1) bank rows: column 0 the positives, then K draws.
        temperature: T; CMC has 0.07.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check(f, bank, index, temperature)

    def terms(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits.log_softmax(dim=1)
        value = -log_p[:, 0].sum()
        slope = log_p.exp_()
        slope[:, 0] -= 1
        return value, slope

    with no_autocast(f):
        return _sampled_loss(at_least_float32(f), bank, index, temperature, terms)


def bank_softmax(f: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each row's positive among all M bank rows.

    Args:
        f: (n, D) features, L2-normalized by the caller.
        bank: (M, D) memory bank, of any floating type; a constant.
        index: (n,) bank rows of the positives.
        temperature: T; the paper has 0.07, the reference code 0.1 on CIFAR-10.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check(f, bank, index[:, None], temperature)
    with no_autocast(f):
        f = at_least_float32(f)
        q, v = f.detach() / temperature, bank.index_select(0, index).to(f.dtype)
        positive = (q * v).sum(dim=1, keepdim=True)
        mean = torch.zeros_like(q) if needs_gradient(f) else None
        step = max(256, entries_per_block(_LOGITS_BLOCK, f) // 4 // max(1, len(f)))
        top, norm, mean = online_softmax(q, bank, positive, torch.zeros_like(positive), mean, step)
        scale = world_size() / row_layout(len(f)).total
        grad = None if mean is None else (mean / norm - v) * (scale / temperature)
        return attach_gradient((top + norm.log() - positive).sum() * scale, f, grad)


def proximal(f: Tensor, old_rows: Tensor) -> Tensor:
    """Mean over the global batch of ||f - v||^2, v the bank rows before this step.

    Args:
        f: (n, D) features, L2-normalized by the caller.
        old_rows: (n, D) v, without gradient.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    check_same_shape("f and old_rows", f, old_rows)
    difference = at_least_float32(f) - at_least_float32(old_rows)
    return difference.square().sum() * (world_size() / row_layout(len(f)).total)


def _check(f: Tensor, bank: Tensor, index: Tensor, temperature: float) -> None:
    if f.dim() != 2 or bank.dim() != 2 or f.shape[1] != bank.shape[1]:
        raise ValueError(f"f must be (n, D) and bank (M, D), got {shapes(f, bank)}")
    if index.dim() != 2 or len(index) != len(f):
        raise ValueError(f"index must have {len(f)} rows of bank positions, got {shapes(index)}")
    check_positive("temperature", temperature)


def _sampled_loss(
    f: Tensor,
    bank: Tensor,
    index: Tensor,
    temperature: float,
    terms: Callable[[Tensor], tuple[Tensor, Tensor]],
    constant: Tensor | float = 0.0,
) -> Tensor:
    """Mean over the global batch of a function of the logits of the sampled bank rows.

    Args:
        f: (n, D).
        bank: (M, D).
        index: (n, K + 1).
        temperature: T.
        terms: logits (b, K + 1) -> their sum of losses (), and its derivative (b, K + 1).
        constant: added to the sum over this rank's rows.
    """
    scale = world_size() / row_layout(len(f)).total
    total = f.new_zeros(())
    grad = torch.empty_like(f) if needs_gradient(f) else None
    blocks = _dense if len(bank) <= _DENSE * index.shape[1] else _sampled
    for rows, dots, weighted_sum in blocks(f.detach(), bank, index):
        value, slope = terms(dots / temperature)
        total = total + value
        if grad is not None:
            grad[rows] = weighted_sum(slope)
    grad = None if grad is None else grad.mul_(scale / temperature)
    return attach_gradient((total + constant) * scale, f, grad)


def _sampled_rows(f: Tensor, bank: Tensor, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the batch and their sampled bank rows (b, K + 1, D) in f's precision."""
    row_size = index.shape[1] * f.shape[1]
    step = max(1, entries_per_block(_ROWS_BLOCK, f) // max(1, row_size))
    for start in range(0, len(f), step):
        rows = slice(start, start + step)
        sampled = bank.index_select(0, index[rows].flatten()).to(f.dtype)
        yield rows, sampled.unflatten(0, (-1, index.shape[1]))


def _sampled(f: Tensor, bank: Tensor, index: Tensor) -> Iterator[_Block]:
    """Blocks from the sampled rows alone, gathered."""
    for rows, sampled in _sampled_rows(f, bank, index):
        dots = torch.bmm(sampled, f[rows, :, None])[:, :, 0]
        yield rows, dots, partial(_sum_sampled, sampled)


def _dense(f: Tensor, bank: Tensor, index: Tensor) -> Iterator[_Block]:
    """Blocks from all (b, M) dot products, which cost less than gathering many rows."""
    bank = bank.to(f.dtype)
    step = max(1, entries_per_block(_LOGITS_BLOCK, f) // len(bank))
    for start in range(0, len(f), step):
        rows = slice(start, start + step)
        here, every = index[rows], f[rows] @ bank.T
        yield rows, every.gather(1, here), partial(_sum_dense, every, here, bank)


def _sum_sampled(sampled: Tensor, weights: Tensor) -> Tensor:
    return torch.bmm(weights[:, None], sampled)[:, 0]


def _sum_dense(buffer: Tensor, index: Tensor, bank: Tensor, weights: Tensor) -> Tensor:
    return buffer.zero_().scatter_add_(1, index, weights) @ bank
