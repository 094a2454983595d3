"""NT-Xent: the normalized temperature-scaled cross entropy of SimCLR.

Chen, Kornblith, Norouzi and Hinton, ICML 2020, https://arxiv.org/abs/2002.05709, equation 1.
Reference code: google-research/simclr, tf2/objective.py.

Deviations:
    value: the mean over the 2N anchors, as in the paper; the reference code adds the means of
        its two directions, which is twice that (and so is its gradient).

Shapes: n local pairs, N global pairs, M = 2N rows, D width. The M x M similarities are never
kept: they are formed block by block, and the gradient with them in the forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.checks import check_positive, check_same_shape
from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, l2_normalize, no_autocast
from sslzoo.losses.blockwise import attach_gradient, entries_per_block, needs_gradient

# Side of a square block and entries per block, timed at D = 128: 1024 keeps a block in the
# second-level cache of a core; a GPU prefers fewer and larger launches.
_SIDE = {"cpu": 1024, "cuda": 4096}
_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 25}
# exp(-80) and exp(-690) are close to the smallest normal numbers of the two precisions.
_RANGE = {torch.float32: 80.0, torch.float64: 690.0}


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, normalize: bool = True) -> Tensor:
    """Mean cross entropy of each view's positive among the batch's other 2N - 1 views.

    The positive is the other view of the same sample; the batch is the global one.

    Args:
        z1: (n, D) first views' projections.
        z2: (n, D) second views' projections, row i the positive of z1's row i.
        temperature: divides the cosines; 0.1 on ImageNet, 0.5 on CIFAR-10 in the paper.
        normalize: whether the rows are L2-normalized here (squared norm at least 1e-12); otherwise
            similarities are dot products (the code's hidden_norm=False).

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    check_same_shape("z1 and z2", z1, z2)
    check_positive("temperature", temperature)
    with no_autocast(z1):
        z = torch.stack([z1, z2], dim=1)  # (n, 2, D)
        z = l2_normalize(z, eps=1e-6) if normalize else at_least_float32(z)
        rows = row_layout(len(z))
        keys = gather(z, rows).flatten(0, 1)  # (M, D): rows 2i and 2i + 1 are a pair
        symmetric = normalize and world_size() == 1 and 2 / temperature <= _RANGE[keys.dtype]
        own = None if symmetric else (2 * rows.start, 2 * len(z))
        scale = world_size() / (2 * rows.total)
        return pair_cross_entropy(keys, own, temperature, scale)


def pair_cross_entropy(
    keys: Tensor, own: tuple[int, int] | None, temperature: float, scale: float
) -> Tensor:
    """`scale` times the sum over anchors of logsumexp(other rows) - positive, on dot products.

    Args:
        keys: (M, D), where rows 2i and 2i + 1 are a pair.
        own: (first, count) of the rows that are anchors, for keys of any norm. None: all rows are
            anchors, no norm is above 1 and exp(-2 / temperature) is representable; then half of
            the similarities suffice, because they are symmetric.
        temperature: divides the dot products.
        scale: a factor.
    """
    x, with_gradient = keys.detach(), needs_gradient(keys)
    first, count = own or (0, len(x))
    if own is None:
        normalizer, grad = _all_anchors(x, temperature, with_gradient)
    else:
        normalizer, grad = _own_anchors(x, first, count, temperature, with_gradient)
    pairs = x[first : first + count].unflatten(0, (-1, 2))  # (count / 2, 2, D)
    positive = (pairs[:, 0] * pairs[:, 1]).sum() * (2 / temperature)
    if grad is not None:
        grad[first : first + count] -= 2 * pairs.flip(1).flatten(0, 1)
        grad.mul_(scale / temperature)
    return attach_gradient((normalizer - positive) * scale, keys, grad)


def _own_anchors(
    keys: Tensor, first: int, count: int, temperature: float, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of the anchors' log-sum-exp, and temperature times its gradient by the keys.

    A block holds the similarities of some anchors with all keys.
    """
    total = keys.new_zeros(())
    grad = torch.zeros_like(keys) if with_gradient else None
    step = max(1, entries_per_block(_BLOCK, keys) // len(keys))
    for start in range(first, first + count, step):
        stop = min(start + step, first + count)
        anchors = keys[start:stop]
        similarity = (anchors / temperature) @ keys.T
        similarity.diagonal(start).fill_(-torch.inf)
        top = similarity.amax(dim=1, keepdim=True)
        weight = similarity.sub_(top).exp_()
        norm = weight.sum(dim=1, keepdim=True)
        total = total + (top + norm.log()).sum()
        if grad is not None:
            grad[start:stop] += (weight @ keys) / norm
            grad.addmm_(weight.T, anchors / norm)
    return total, grad


def _all_anchors(
    keys: Tensor, temperature: float, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The same with all rows as anchors, from the blocks on and above the diagonal.

    The softmax weights of a row and a column share exp(similarity - 1 / temperature): once the
    row sums are known, each block is formed again (one product) and serves both (two products).
    """
    side = entries_per_block(_SIDE, keys)
    blocks = [slice(start, start + side) for start in range(0, len(keys), side)]
    scaled = keys / temperature
    sums = keys.new_zeros(len(keys))
    block = keys.new_zeros(0)
    for i, row in enumerate(blocks):
        for column in blocks[i:]:
            block = _exp_block(scaled, keys, row, column, temperature)
            sums[row] += block.sum(dim=1)
            if column != row:
                sums[column] += block.sum(dim=0)
    total = sums.log().sum() + len(keys) / temperature
    if not with_gradient:
        return total, None
    inverse = 1 / sums
    grad = torch.zeros_like(keys)
    for i, row in enumerate(blocks):
        for column in blocks[i:]:
            if len(blocks) > 1:
                block = _exp_block(scaled, keys, row, column, temperature)
            block.mul_(inverse[row, None] + inverse[column])
            grad[row].addmm_(block, keys[column])
            if column != row:
                grad[column].addmm_(block.T, keys[row])
    return total, grad


def _exp_block(
    scaled: Tensor, keys: Tensor, row: slice, column: slice, temperature: float
) -> Tensor:
    """exp((similarity - 1) / temperature), 0 for a row with itself."""
    block = (scaled[row] @ keys[column].T).sub_(1 / temperature)
    if column == row:
        block.fill_diagonal_(-torch.inf)
    return block.exp_()
