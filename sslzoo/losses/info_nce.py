"""InfoNCE: cross entropy of a query's own key among a queue's rows, or among the global batch's.

Van den Oord, Li and Vinyals, 2018, https://arxiv.org/abs/1807.03748, equation 4; with a queue He
et al., CVPR 2020, https://arxiv.org/abs/1911.05722, equation 1.
Reference code: facebookresearch/moco at 78b69ca, moco/builder.py and main_moco.py.

Deviations: none.

Shapes: n local rows, N global rows, K queue rows, D width. Neither the (n, K) nor the (n, N)
logits exist as a whole where they are many: the gradient is formed with them in the forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslzoo.distributed import gather, row_layout, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast

# Logits in one block: the size of a core's cache on a CPU, few launches on a GPU.
_LOGITS_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}


def info_nce(query: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Mean cross entropy of each query's positive key among it and the K rows of the queue.

    Args:
        query: (n, D) queries, L2-normalized by the caller.
        positive: (n, D) their keys, normalized likewise; MoCo's have no gradient.
        queue: (K, D) negatives, of any floating type; a constant.
        temperature: T; MoCo v1 has 0.07, v2 0.2.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check(query, positive, temperature)
    if queue.dim() != 2 or queue.shape[1] != query.shape[1]:
        raise ValueError(f"a queue (K, {query.shape[1]}) wanted, got {tuple(queue.shape)}")
    with no_autocast(query):
        q, k = at_least_float32(query), at_least_float32(positive)
        scale = world_size() / row_layout(len(q)).total
        with_gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
        return _QueueInfoNCE.apply(q, k.to(q.dtype), queue, temperature, scale, with_gradient)  # type: ignore[no-any-return]


def batch_info_nce(query: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Mean cross entropy of each query's own key among the N keys of the global batch.

    Args:
        query: (n, D) queries, L2-normalized by the caller.
        keys: (n, D), row i the positive of query i; normalized likewise. Either may be without
            gradient.
        temperature: T; NNCLR has 0.1.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check(query, keys, temperature)
    with no_autocast(query):
        q, k = at_least_float32(query), at_least_float32(keys)
        rows = row_layout(len(q))
        every = gather(k.to(q.dtype), rows)
        scale = world_size() / rows.total
        with_gradient = torch.is_grad_enabled() and (q.requires_grad or every.requires_grad)
        return _BatchInfoNCE.apply(q, every, rows.start, temperature, scale, with_gradient)  # type: ignore[no-any-return]


def _check(query: Tensor, keys: Tensor, temperature: float) -> None:
    if query.dim() != 2 or query.shape != keys.shape:
        shapes = f"{tuple(query.shape)} and {tuple(keys.shape)}"
        raise ValueError(f"queries and keys are two (n, D) tensors of one shape, got {shapes}")
    if not temperature > 0:
        raise ValueError(f"the loss divides by a temperature above 0, got {temperature}")


class _QueueInfoNCE(torch.autograd.Function):
    """Block by block of the queue, with a running maximum that starts at the positive."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        queue: Tensor,
        temperature: float,
        scale: float,
        with_gradient: bool,
    ) -> Tensor:
        scaled = q / temperature
        positive = (scaled * k).sum(dim=1, keepdim=True)
        top, norm = positive, torch.ones_like(positive)
        mean = k  # of all keys under the softmax, times norm
        step = max(256, _block(q) // max(1, len(q)))
        for start in range(0, len(queue), step):
            block = queue[start : start + step].to(q.dtype)
            logits = scaled @ block.T
            new_top = torch.maximum(top, logits.amax(dim=1, keepdim=True))
            weight = logits.sub_(new_top).exp_()
            fade = (top - new_top).exp()
            norm = norm * fade + weight.sum(dim=1, keepdim=True)
            if with_gradient:
                mean = torch.addmm(mean * fade, weight, block)
            top = new_top
        if with_gradient:
            share = (positive - top).exp() / norm  # of the positive in the softmax
            factor = scale / temperature
            ctx.save_for_backward((mean / norm - k) * factor, (share - 1) * q * factor)
        return (top + norm.log() - positive).sum() * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        by_query, by_key = ctx.saved_tensors
        return grads[0] * by_query, grads[0] * by_key, None, None, None, None


class _BatchInfoNCE(torch.autograd.Function):
    """Strip by block: some queries' logits with all keys, each row's maximum taken out."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        keys: Tensor,
        first: int,
        temperature: float,
        scale: float,
        with_gradient: bool,
    ) -> Tensor:
        own = keys[first : first + len(q)]
        constant_keys = not ctx.needs_input_grad[1]
        total = -(q * own).sum() / temperature
        by_query, by_key = torch.zeros_like(q), torch.zeros_like(keys)
        step = max(1, _block(q) // max(1, len(keys)))
        for start in range(0, len(q), step):
            rows = slice(start, start + step)
            logits = (q[rows] / temperature) @ keys.T
            top = logits.amax(dim=1, keepdim=True)
            weight = logits.sub_(top).exp_()
            norm = weight.sum(dim=1, keepdim=True)
            total = total + (top + norm.log()).sum()
            if with_gradient:
                by_query[rows] = weight @ keys / norm
                if not constant_keys:
                    by_key.addmm_(weight.T, q[rows] / norm)
        if with_gradient:
            by_query -= own
            by_key[first : first + len(q)] -= q
            factor = scale / temperature
            ctx.save_for_backward(by_query.mul_(factor), by_key.mul_(factor))
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        by_query, by_key = ctx.saved_tensors
        return grads[0] * by_query, grads[0] * by_key, None, None, None, None


def _block(x: Tensor) -> int:
    return _LOGITS_BLOCK.get(x.device.type, _LOGITS_BLOCK["cpu"])
