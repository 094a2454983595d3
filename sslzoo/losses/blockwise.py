"""RowBlocks: sums over anchors of a function of their similarities to all keys, a block at a time.

The similarities of a global batch never exist as a whole. A loss walks over blocks of anchors,
adds up its value, and hands in the slope of that value by the block's dot products or squared
distances, from which the gradients by anchors and keys are formed at once.

Shapes: m local anchors, M keys, D width, b anchors of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Numbers of one block: few enough for a core's caches; large launches, and 64 MiB, on a GPU.
_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 24}
NEAREST = 1e-9**0.5  # the least distance that a slope is divided by


class RowBlocks:
    """Anchors against keys, and the gradient of a sum over the anchors.

    Args:
        anchors: (m, D), in float32 at least.
        keys: (M, D); detached keys get no gradient.

    Attributes:
        slices: of the anchors, one a block.
    """

    def __init__(self, anchors: Tensor, keys: Tensor) -> None:
        self._tensors = anchors, keys
        self.anchors, self.keys = anchors.detach(), keys.detach()
        self._anchor_grad = _room_for_gradient(anchors)
        self._key_grad = _room_for_gradient(keys)
        limit = _BLOCK.get(anchors.device.type, _BLOCK["cpu"])
        step = max(1, limit // max(1, len(keys)))
        count = len(anchors)
        self.slices = [slice(i, min(i + step, count)) for i in range(0, count, step)]

    def dots(self, rows: slice) -> Tensor:
        """Dot products of a block. (b, M), without gradient."""
        return self.anchors[rows] @ self.keys.T

    def distances(self, rows: slice) -> Tensor:
        """Euclidean distances of a block, from differences: exact for close points. (b, M)."""
        mode = "donot_use_mm_for_euclid_dist"
        return torch.cdist(self.anchors[rows], self.keys, compute_mode=mode)

    def add_slope(self, rows: slice, slope: Tensor) -> None:
        """Take the slope (b, M) of the sum by the dot products of a block."""
        if self._anchor_grad is not None:
            self._anchor_grad[rows] += slope @ self.keys
        if self._key_grad is not None:
            self._key_grad += slope.T @ self.anchors[rows]

    def add_square_slope(self, rows: slice, slope: Tensor) -> None:
        """Take the slope (b, M) of the sum by the squared distances of a block."""
        self.add_slope(rows, -2 * slope)
        if self._anchor_grad is not None:
            self._anchor_grad[rows] += 2 * slope.sum(dim=1)[:, None] * self.anchors[rows]
        if self._key_grad is not None:
            self._key_grad += 2 * slope.sum(dim=0)[:, None] * self.keys

    def total(self, value: Tensor) -> Tensor:
        """The sum, given its value (), with the gradient that the slopes gave."""
        for x, grad in zip(self._tensors, (self._anchor_grad, self._key_grad), strict=True):
            if grad is not None:
                value = _Known.apply(value, x, grad)
        return value


def _room_for_gradient(x: Tensor) -> Tensor | None:
    return torch.zeros_like(x.detach()) if torch.is_grad_enabled() and x.requires_grad else None


class _Known(torch.autograd.Function):
    """A scalar whose gradient by x is known; what `value` had already passes through."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grads[0], grads[0] * grad, None
