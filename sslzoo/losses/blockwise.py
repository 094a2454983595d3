"""Blockwise losses: sums over a similarity matrix of which only one block exists at a time.

A loss walks over blocks of the matrix, adds up its value, and forms the gradient with it, so that
neither the matrix nor its graph is kept for the backward pass.

Shapes: m local anchors, M keys, D width, b anchors per block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Entries per block: few enough for a core's caches; large launches, and 64 MiB, on a GPU.
_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 24}
MIN_DISTANCE = 1e-9**0.5  # the smallest distance by which a slope is divided


def entries_per_block(limits: dict[str, int], x: Tensor) -> int:
    """The limit of x's type of device; unknown types have the CPU's."""
    return limits.get(x.device.type, limits["cpu"])


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether the backward pass will reach one of the tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def attach_gradient(value: Tensor, x: Tensor, grad: Tensor | None) -> Tensor:
    """Return the scalar with the gradient `grad` with respect to x; None adds none."""
    return value if grad is None else _AttachGradient.apply(value, x, grad)  # type: ignore[no-any-return]


class _AttachGradient(torch.autograd.Function):
    """A scalar with a known gradient; that which `value` already has passes through."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grads[0], grads[0] * grad, None


class RowBlocks:
    """Blocks of anchors against all keys, and the gradient of a sum over the anchors.

    Args:
        anchors: (m, D), in float32 at least.
        keys: (M, D); detached keys get no gradient.

    Attributes:
        slices: one slice of the anchors per block.
    """

    def __init__(self, anchors: Tensor, keys: Tensor) -> None:
        self._tensors = anchors, keys
        self.anchors, self.keys = anchors.detach(), keys.detach()
        self._anchor_grad, self._key_grad = (
            torch.zeros_like(x.detach()) if needs_gradient(x) else None for x in self._tensors
        )
        step = max(1, entries_per_block(_BLOCK, anchors) // max(1, len(keys)))
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
        """Add the derivative (b, M) of the sum by a block's dot products."""
        if self._anchor_grad is not None:
            self._anchor_grad[rows] += slope @ self.keys
        if self._key_grad is not None:
            self._key_grad += slope.T @ self.anchors[rows]

    def add_square_slope(self, rows: slice, slope: Tensor) -> None:
        """Add the derivative (b, M) of the sum by a block's squared distances."""
        self.add_slope(rows, -2 * slope)
        if self._anchor_grad is not None:
            self._anchor_grad[rows] += 2 * slope.sum(dim=1)[:, None] * self.anchors[rows]
        if self._key_grad is not None:
            self._key_grad += 2 * slope.sum(dim=0)[:, None] * self.keys

    def total(self, value: Tensor) -> Tensor:
        """The sum, given its value (), with the gradient that the slopes amount to."""
        for x, grad in zip(self._tensors, (self._anchor_grad, self._key_grad), strict=True):
            value = attach_gradient(value, x, grad)
        return value
