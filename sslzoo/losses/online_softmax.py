"""Online softmax: log-sum-exp over many keys, read once in blocks, with a running maximum.

Milakov and Gimelshein, 2018, https://arxiv.org/abs/1805.02867, algorithm 3.

Shapes: n rows, K keys, b keys per block, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_block(logits: Tensor, top: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add a block of logits to a running maximum and a running sum of exponentials.

    Args:
        logits: (n, b); overwritten.
        top: (n, 1) maximum of the earlier blocks.
        norm: (n, 1) sum of exp(logit - top) over the earlier blocks.

    Returns:
        The new top and norm, the block's weights exp(logit - top) (n, b), and the factor (n, 1) by
        which sums over earlier blocks shrink.
    """
    new_top = torch.maximum(top, logits.amax(dim=1, keepdim=True))
    weights = logits.sub_(new_top).exp_()
    decay = (top - new_top).exp()
    return new_top, norm * decay + weights.sum(dim=1, keepdim=True), weights, decay


def online_softmax(
    q: Tensor, keys: Tensor, top: Tensor, norm: Tensor, mean: Tensor | None, step: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Maximum, sum of exponentials and weighted sum of the keys under the softmax of q k.

    Args:
        q: (n, D), divided by the temperature.
        keys: (K, D), of any floating type.
        top: (n, 1) to begin with, a lower bound of the maximum.
        norm: (n, 1) to begin with: 1 if a key with the logit `top` is counted already, else 0.
        mean: (n, D) to begin with: that key, else 0; None: the sum of keys is not formed.
        step: keys per block.

    Returns:
        Final top, norm and mean: log-sum-exp is top + log(norm), the mean key mean / norm.
    """
    for start in range(0, len(keys), step):
        block = keys[start : start + step].to(q.dtype)
        top, norm, weights, decay = add_block(q @ block.T, top, norm)
        if mean is not None:
            mean = torch.addmm(mean * decay, weights, block)
    return top, norm, mean
