"""DINO's loss: cross entropy between the teacher's and the student's probabilities.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski and Joulin, Emerging Properties in
Self-Supervised Vision Transformers, ICCV 2021, https://arxiv.org/abs/2104.14294.
Reference code: facebookresearch/dino at 7c446df, main_dino.py, DINOLoss.

Deviations: none.

Shapes: n local samples, S student and T teacher views of each, D width of the bottleneck, K
prototypes. Neither the student's (n, S, K) logits nor normalized prototypes are kept: the gradient
is formed in the forward pass, block by block of the prototypes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslzoo.checks import check_positive, shapes
from sslzoo.distributed import row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import entries_per_block, needs_gradient
from sslzoo.losses.online_softmax import add_block

# Logits per block: the size of a core's cache on a CPU, 32 MiB on a GPU.
_LOGITS_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 23}


def teacher_probabilities(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """softmax((logits - center) / temperature), without gradient. (..., K) -> (..., K).

    Args:
        logits: (..., K) of the teacher.
        center: (K,), C, the running mean of its logits up to the previous step.
        temperature: tau_t, which sharpens; 0.04 to 0.07 in the paper.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    check_positive("temperature", temperature)
    with torch.no_grad(), no_autocast(logits):
        return (at_least_float32(logits) - center).div_(temperature).softmax(dim=-1)


def dino(z: Tensor, v: Tensor, g: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean cross entropy over all pairs of a teacher's view and a different student's view.

    Args:
        z: (n, S, D) the student's bottleneck; its first T views are the teacher's.
        v: (K, D) directions of the prototypes; a logit is z . g v / |v|.
        g: (K, 1) their lengths.
        teacher: (n, T, K) probabilities, a constant; T is 2 in the paper.
        temperature: tau_s of the student; 0.1 in the paper.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, a single view, or a temperature that is not positive.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    views = z.shape[1], teacher.shape[1]
    pairs = z.new_ones(*views, dtype=dtype).fill_diagonal_(0.0)
    terms = views[0] * views[1] - min(views)
    if terms == 0:
        raise ValueError("the student must have at least two views, got one")
    return distillation(z, v, g, teacher, pairs / terms, temperature)


def distillation(
    z: Tensor,
    v: Tensor,
    g: Tensor,
    teacher: Tensor,
    pairs: Tensor,
    temperature: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Sum over views s and t of pairs[s, t] times their mean cross entropy over samples.

    Args:
        z: (n, S, D) the student's bottleneck.
        v: (K, D) directions of the prototypes.
        g: (K, 1) their lengths.
        teacher: (n, T, K) probabilities, a constant.
        pairs: (S, T) weights of the pairs, a constant; 0 excludes a pair.
        temperature: tau_s of the student.
        weight: (n, S) weights of the student's rows in the mean; None: all are 1.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    check_positive("temperature", temperature)
    _check(z, v, g, teacher, pairs, weight)
    with no_autocast(z):
        z, v, g = at_least_float32(z), at_least_float32(v), at_least_float32(g)
        weight = z.new_ones(z.shape[:2]) if weight is None else weight.to(z.dtype)
        weight = weight * (world_size() / row_layout(len(z)).total)
        constants = teacher.to(z.dtype), pairs.to(z.dtype), weight, temperature
        return _Distillation.apply(z, v, g, *constants, needs_gradient(z, v, g))  # type: ignore[no-any-return]


def _check(
    z: Tensor, v: Tensor, g: Tensor, teacher: Tensor, pairs: Tensor, weight: Tensor | None
) -> None:
    if z.dim() != 3 or v.dim() != 2 or v.shape[1] != z.shape[2] or g.shape != (len(v), 1):
        raise ValueError(f"z must be (n, S, D), v (K, D) and g (K, 1), got {shapes(z, v, g)}")
    if teacher.dim() != 3 or teacher.shape[::2] != (len(z), len(v)):
        raise ValueError(f"teacher must be ({len(z)}, T, {len(v)}), got {shapes(teacher)}")
    if pairs.shape != (z.shape[1], teacher.shape[1]):
        raise ValueError(f"pairs must be ({z.shape[1]}, {teacher.shape[1]}), got {shapes(pairs)}")
    if weight is not None and weight.shape != z.shape[:2]:
        raise ValueError(f"weight must be {tuple(z.shape[:2])}, got {shapes(weight)}")


class _Distillation(torch.autograd.Function):
    """Two passes over blocks of the prototypes: the normalizers, then the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        v: Tensor,
        g: Tensor,
        teacher: Tensor,
        pairs: Tensor,
        weight: Tensor,
        temperature: float,
        with_gradient: bool,
    ) -> Tensor:
        count, views, _ = z.shape
        rows = z.flatten(0, 1)  # (n S, D)
        pairs = pairs * weight[..., None]  # (n, S, T)
        mass = pairs.sum(dim=2).view(-1, 1)  # sum of each row's target, (n S, 1)
        length = torch.linalg.vector_norm(v, dim=1)
        inverse = 1 / (length * temperature)
        factor = g[:, 0] * inverse  # (K,): z . v times it is a logit over the temperature
        blocks = _blocks(rows, v)

        top = rows.new_full((len(rows), 1), -torch.inf)
        norm, matched = torch.zeros_like(top), torch.zeros_like(pairs)
        for block in blocks:
            logits = (rows @ v[block].T).mul_(factor[block])
            matched.baddbmm_(logits.view(count, views, -1), teacher[..., block].transpose(1, 2))
            top, norm, *_ = add_block(logits, top, norm)
        normalizer = top + norm.log()  # (n S, 1)
        value = (mass * normalizer).sum() - (pairs * matched).sum()
        if not with_gradient:
            return value

        normalizer -= mass.log()
        by_rows, by_v, by_g = torch.zeros_like(rows), torch.empty_like(v), torch.empty_like(g)
        for block in blocks:
            dots = rows @ v[block].T
            slope = torch.mul(dots, factor[block]).sub_(normalizer).exp_()
            slope.view(count, views, -1).baddbmm_(pairs, teacher[..., block], alpha=-1)
            along_v = dots.mul_(slope).sum(dim=0)
            by_g[block, 0] = along_v * inverse[block]
            slope *= factor[block]
            by_rows.addmm_(slope, v[block])
            torch.mm(slope.T, rows, out=by_v[block])
            radial = along_v * factor[block] / length[block] ** 2
            by_v[block].addcmul_(v[block], radial[:, None], value=-1)  # logits are free of |v|
        ctx.save_for_backward(by_rows.view_as(z), by_v, by_g)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        # In place: a copy would be as large as the prototypes. A second backward pass is an error.
        by_z, by_v, by_g = (x.mul_(grads[0]) for x in ctx.saved_tensors)
        return by_z, by_v, by_g, None, None, None, None, None


def _blocks(rows: Tensor, v: Tensor) -> list[slice]:
    step = max(256, entries_per_block(_LOGITS_BLOCK, rows) // max(1, len(rows)))
    return [slice(start, start + step) for start in range(0, len(v), step)]
