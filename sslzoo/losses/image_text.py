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
formed block by block, and the gradient with them in the forward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_same_shape
from sslzoo.distributed import pass_on, rank, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import attach_gradient, entries_per_block, needs_gradient
from sslzoo.losses.info_nce import batch_info_nce

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
        images, texts = at_least_float32(images), at_least_float32(texts)
        scale = at_least_float32(log_scale).exp()
        rows = batch_info_nce(scale * images, texts, 1.0)
        return (rows + batch_info_nce(scale * texts, images, 1.0)) / 2


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
