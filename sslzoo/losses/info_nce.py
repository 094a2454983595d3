"""InfoNCE: cross entropy of a query's own key among a queue or the batch.

Van den Oord, Li and Vinyals, 2018, https://arxiv.org/abs/1807.03748, equation 4; with a queue He
et al., CVPR 2020, https://arxiv.org/abs/1911.05722, equation 1.
Reference code: facebookresearch/moco at 78b69ca, moco/builder.py and main_moco.py.

Deviations: none.

Shapes: n local rows, N global rows, K queue rows, D width. Neither the (n, K) nor the (n, N)
logits are kept: the gradient is formed with them in the forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import attach_gradient, entries_per_block, needs_gradient
from sslzoo.losses.checks import check_positive, check_same_shape, shapes
from sslzoo.losses.online_softmax import online_softmax

# Logits per block: the size of a core's cache on a CPU, few launches on a GPU.
_LOGITS_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}


def info_nce(query: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Mean cross entropy of each query's positive key among it and the queue's keys.

    Args:
        query: (n, D) queries q, L2-normalized by the caller.
        positive: (n, D) their keys k+, L2-normalized by the caller; MoCo's have no gradient.
        queue: (K, D) negative keys, of any floating type; a constant.
        temperature: T; MoCo v1 has 0.07, v2 0.2.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    check_same_shape("query and positive", query, positive)
    check_positive("temperature", temperature)
    if queue.dim() != 2 or queue.shape[1] != query.shape[1]:
        raise ValueError(f"queue must be (K, {query.shape[1]}), got {shapes(queue)}")
    with no_autocast(query):
        query = at_least_float32(query)
        positive = at_least_float32(positive).to(query.dtype)
        q, k = query.detach(), positive.detach()
        l_pos = (q / temperature * k).sum(dim=1, keepdim=True)  # (n, 1)
        mean = k if needs_gradient(query, positive) else None
        step = max(256, entries_per_block(_LOGITS_BLOCK, q) // max(1, len(q)))
        top, norm, mean = online_softmax(
            q / temperature, queue.detach(), l_pos, torch.ones_like(l_pos), mean, step
        )
        scale = world_size() / row_layout(len(q)).total
        loss = (top + norm.log() - l_pos).sum() * scale
        if mean is None:
            return loss
        p = (l_pos - top).exp() / norm  # the positive's probability
        loss = attach_gradient(loss, query, (mean / norm - k) * (scale / temperature))
        return attach_gradient(loss, positive, (p - 1) * q * (scale / temperature))


def batch_info_nce(query: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Mean cross entropy of each query's own key among the N keys of the global batch.

    Args:
        query: (n, D) queries q, L2-normalized by the caller.
        keys: (n, D), row i the positive of query i; L2-normalized by the caller. Either may be
            without gradient.
        temperature: T; NNCLR has 0.1.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    check_same_shape("query and keys", query, keys)
    check_positive("temperature", temperature)
    with no_autocast(query):
        query = at_least_float32(query)
        rows = row_layout(len(query))
        every = gather(at_least_float32(keys).to(query.dtype), rows)  # (N, D)
        q, k, own = query.detach(), every.detach(), rows.own
        total = -(q * k[own]).sum() / temperature
        grad_q = torch.zeros_like(q) if needs_gradient(query, every) else None
        grad_k = torch.zeros_like(k) if needs_gradient(every) else None
        step = max(1, entries_per_block(_LOGITS_BLOCK, q) // max(1, len(k)))
        for start in range(0, len(q), step):
            block = slice(start, start + step)
            logits = (q[block] / temperature) @ k.T  # (b, N)
            top = logits.amax(dim=1, keepdim=True)
            weights = logits.sub_(top).exp_()
            norm = weights.sum(dim=1, keepdim=True)
            total = total + (top + norm.log()).sum()
            if grad_q is not None:
                grad_q[block] = weights @ k / norm
            if grad_k is not None:
                grad_k.addmm_(weights.T, q[block] / norm)
        scale = world_size() / rows.total
        loss = total * scale
        if grad_q is not None:
            grad_q = (grad_q - k[own]) * (scale / temperature)
            loss = attach_gradient(loss, query, grad_q)
        if grad_k is not None:
            grad_k[own] -= q
            loss = attach_gradient(loss, every, grad_k.mul_(scale / temperature))
        return loss
