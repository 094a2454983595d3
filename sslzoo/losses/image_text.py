"""Losses of image-text pairs: CLIP's symmetric cross entropy and SigLIP's sigmoid of every pair.

Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020; Zhai et al., ICCV 2023,
https://arxiv.org/abs/2303.15343.
Reference code: mlfoundations/open_clip at 89fb801, src/open_clip/loss.py, whose SigLIP is that of
big_vision.

Deviations:
    1. CLIP: every rank's value and gradient are those of one process, as with the code's local_loss
       and gather_with_grad; by the code's defaults, gradients of the towers are 1 / W of these.
    2. SigLIP: texts go around the ranks once, and their gradients with them, in the forward pass;
       the code exchanges neighbors in both directions, and again in the backward pass. Both give
       the values of one process.

Shapes: n local pairs, N global pairs, W ranks, D width. The (N, N) logits are never kept: they are
formed block by block, and the gradient with them in the forward pass. CLIP's are formed twice,
since the softmax of a text is known when all images were seen: four products of matrices in all,
where the logits of both directions and their gradients are six.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_same_shape
from sslzoo.distributed import (
    gather,
    gather_rows,
    pass_on,
    rank,
    row_layout,
    sum_over_ranks,
    world_size,
)
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import attach_gradient, entries_per_block, needs_gradient
from sslzoo.losses.online_softmax import add_block

# Logits per block: the size of a core's cache on a CPU, few launches on a GPU.
_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}


def clip_loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Mean of two cross entropies: the own text among all texts, the own image among all images.

    Args:
        images: (n, D), L2-normalized by the caller.
        texts: (n, D), row i the text of image i; L2-normalized by the caller.
        log_scale: () log of the factor of the cosines; ln(1 / 0.07) to begin with in the paper.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    check_same_shape("images and texts", images, texts)
    with no_autocast(images):
        images, log_scale = at_least_float32(images), at_least_float32(log_scale)
        scale = log_scale.detach().exp()
        a = images.detach() * scale
        rows = row_layout(len(a))
        every = gather(at_least_float32(texts).to(a.dtype), rows)  # (N, D)
        t, own = every.detach(), rows.own
        step = max(1, entries_per_block(_BLOCK, a) // max(1, len(t)))
        blocks = [slice(start, start + step) for start in range(0, len(a), step)]
        of_images, of_texts, positive = _softmaxes(a, t, blocks, own.start)
        loss = (of_images.log() + of_texts.log()[own] - 2 * positive).sum()
        mean = world_size() / (2 * rows.total)
        if not needs_gradient(images, every, log_scale):
            return loss * mean
        grad_images, grad_texts = torch.zeros_like(a), torch.zeros_like(t)
        # Of each pair, the logits that both its softmaxes expect, less twice its own.
        excess, by_texts = -2 * positive, t.new_zeros(len(t))
        for block in blocks:
            logits = a[block] @ t.T
            of_text, slope = of_texts.of(logits), of_images.rows(block).of(logits)
            by_texts += (of_text * logits).sum(dim=0)
            excess[block] += (slope * logits).sum(dim=1)
            slope += of_text
            grad_images[block] = slope @ t
            if needs_gradient(every):
                grad_texts.addmm_(slope.T, a[block])
        excess += sum_over_ranks(by_texts)[own]  # pair by pair, where it cancels
        grad_texts[own] -= 2 * a
        grad_images = grad_images.sub_(t[own], alpha=2) * scale
        loss = attach_gradient(loss, images, grad_images)
        loss = attach_gradient(loss, every, grad_texts)
        return attach_gradient(loss, log_scale, excess.sum()) * mean


class _Softmax(NamedTuple):
    """Normalization of a softmax along one side of the logits.

    Args:
        top: the largest logits, (n, 1) of the rows, or (N,) of the columns.
        norm: the sums of exp(logit - top), likewise.
    """

    top: Tensor
    norm: Tensor

    def log(self) -> Tensor:
        """The log of the sums of exponentials, (n,) or (N,)."""
        return (self.top + self.norm.log()).flatten()

    def rows(self, block: slice) -> _Softmax:
        """Those of some rows."""
        return _Softmax(self.top[block], self.norm[block])

    def of(self, logits: Tensor) -> Tensor:
        """The probabilities of logits (b, N)."""
        return (logits - self.top).exp_().div_(self.norm)


def _softmaxes(
    a: Tensor, t: Tensor, blocks: list[slice], first: int
) -> tuple[_Softmax, _Softmax, Tensor]:
    """The softmaxes of this rank's rows of the logits a t^T, and of the columns over all ranks.

    Returns:
        Those of the rows and of the columns, and the logit of each row with its own column, which
        is `first` for row 0, (n,).
    """
    top, norm, positive = a.new_empty(len(a), 1), a.new_empty(len(a), 1), a.new_empty(len(a))
    column_top, column_norm = t.new_full((len(t), 1), -torch.inf), t.new_zeros(len(t), 1)
    for block in blocks:
        logits = a[block] @ t.T
        positive[block] = torch.diagonal(logits, first + block.start)
        top[block] = logits.amax(dim=1, keepdim=True)
        norm[block] = (logits - top[block]).exp_().sum(dim=1, keepdim=True)
        column_top, column_norm = add_block(logits.T, column_top, column_norm)[:2]
    tops, norms = gather_rows(torch.stack((column_top, column_norm))[None, ..., 0]).unbind(1)
    largest = tops.amax(dim=0)  # over ranks, of which one may have no rows
    columns = _Softmax(largest, (norms * (tops - largest).exp()).sum(dim=0))
    return _Softmax(top, norm), columns, positive


def siglip_loss(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Sum over the pairs of an image and a text of -log sigmoid(+-logit), per image.

    The sign is + for an image's own text and - for every other one of the global batch. It is a sum
    over the N texts, so that its value grows with N.

    Args:
        images: (n, D), L2-normalized by the caller.
        texts: (n, D), row i the text of image i; L2-normalized by the caller.
        log_scale: () log of the factor of the cosines; ln 10 to begin with in the paper.
        bias: () added to each logit; -10 to begin with in the paper.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes.
    """
    check_same_shape("images and texts", images, texts)
    with no_autocast(images):
        scaled = at_least_float32(images) * at_least_float32(log_scale).exp()
        texts, bias = at_least_float32(texts).to(scaled.dtype), at_least_float32(bias)
        rows, W = row_layout(len(scaled)), world_size()
        a, b = scaled.detach(), bias.detach()
        with_gradient = needs_gradient(scaled, texts, bias)
        grad_images, grad_bias = torch.zeros_like(a), a.new_zeros(())
        total = a.new_zeros(())
        held = texts.detach()  # the texts of one rank at a time, and their gradient
        held = torch.stack([held, torch.zeros_like(held)])
        held = F.pad(held, (0, 0, 0, max(rows.counts) - len(a)))
        for hop in range(W):
            t, grad_t = held[:, : rows.counts[(rank() - hop) % W]]
            step = max(1, entries_per_block(_BLOCK, a) // max(1, len(t)))
            for start in range(0, len(a), step):
                block = slice(start, start + step)
                logits = (a[block] @ t.T).add_(b)
                total = total + F.softplus(logits).sum()
                own = torch.diagonal(logits, start) if hop == 0 else logits[:0, 0]
                total = total - own.sum()
                if not with_gradient:
                    continue
                slope = logits.sigmoid_()
                own.sub_(1)
                grad_images[block] = grad_images[block] + slope @ t
                grad_t.addmm_(slope.T, a[block])
                grad_bias = grad_bias + slope.sum()
            if with_gradient or hop < W - 1:
                held = pass_on(held)
        scale = W / rows.total
        loss = total * scale
        if not with_gradient:
            return loss
        loss = attach_gradient(loss, scaled, grad_images * scale)
        loss = attach_gradient(loss, texts, held[1, : len(a)] * scale)
        return attach_gradient(loss, bias, grad_bias * scale)
