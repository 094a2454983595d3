"""DINO's loss: cross entropy of a student's softmax over prototypes with its teacher's.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski and Joulin, Emerging Properties in
Self-Supervised Vision Transformers, ICCV 2021, https://arxiv.org/abs/2104.14294.
Reference code: facebookresearch/dino at 7c446df, main_dino.py, DINOLoss.

Deviations: none.

Shapes: n samples of this rank, N of all, S student and T teacher views of each, D width of the
bottleneck, K prototypes. The student's (n, S, K) logits never exist as a whole, nor do normalized
prototypes: the gradient is formed in the forward, some prototypes at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslzoo.distributed import row_layout, world_size
from sslzoo.losses.precision import at_least_float32, no_autocast

# Logits in one block: those of a core's cache on a CPU, 32 MiB on a GPU.
_LOGITS_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 23}


def teacher_probabilities(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """softmax((logits - center) / temperature), without gradient. (..., K) -> (..., K).

    Args:
        logits: of the teacher.
        center: (K,), the running mean of its logits up to the step before.
        temperature: sharpens; 0.04 to 0.07 in the paper.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    _check_temperature(temperature)
    with torch.no_grad(), no_autocast(logits):
        return (at_least_float32(logits) - center).div_(temperature).softmax(dim=-1)


def dino(z: Tensor, v: Tensor, g: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean cross entropy over all pairs of a student's view and another view of the teacher's.

    Args:
        z: (n, S, D) the student's bottleneck; its first T views are those of the teacher.
        v: (K, D) directions of the prototypes; a logit is z . g v / |v|.
        g: (K, 1) their lengths.
        teacher: (n, T, K) probabilities, a constant; T is 2 in the paper.
        temperature: of the student; 0.1 in the paper.

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
        raise ValueError("a view is compared with others: at least two wanted, got one")
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
    """Sum over s and t of pairs[s, t] times the mean over samples of their cross entropy.

    Args:
        z: (n, S, D) the student's bottleneck.
        v: (K, D) directions of the prototypes.
        g: (K, 1) their lengths.
        teacher: (n, T, K) probabilities, a constant.
        pairs: (S, T), a constant; 0 leaves a pair out.
        temperature: of the student.
        weight: (n, S) of each of the student's rows in the mean; None: 1.

    Returns:
        Scalar whose mean over ranks is that of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    _check_temperature(temperature)
    _check(z, v, g, teacher, pairs, weight)
    with no_autocast(z):
        z, v, g = at_least_float32(z), at_least_float32(v), at_least_float32(g)
        weight = z.new_ones(z.shape[:2]) if weight is None else weight.to(z.dtype)
        weight = weight * (world_size() / row_layout(len(z)).total)
        with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (z, v, g))
        constants = teacher.to(z.dtype), pairs.to(z.dtype), weight, temperature
        return _Distillation.apply(z, v, g, *constants, with_gradient)  # type: ignore[no-any-return]


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"the loss divides by a temperature above 0, got {temperature}")


def _check(
    z: Tensor, v: Tensor, g: Tensor, teacher: Tensor, pairs: Tensor, weight: Tensor | None
) -> None:
    if z.dim() != 3 or v.dim() != 2 or v.shape[1] != z.shape[2] or g.shape != (len(v), 1):
        shapes = f"{tuple(z.shape)}, {tuple(v.shape)} and {tuple(g.shape)}"
        raise ValueError(f"rows (n, S, D), prototypes (K, D) and (K, 1) wanted, got {shapes}")
    if teacher.dim() != 3 or teacher.shape[::2] != (len(z), len(v)):
        wanted = f"({len(z)}, T, {len(v)})"
        raise ValueError(f"teacher probabilities {wanted} wanted, got {tuple(teacher.shape)}")
    if pairs.shape != (z.shape[1], teacher.shape[1]):
        wanted = f"({z.shape[1]}, {teacher.shape[1]})"
        raise ValueError(f"weights of pairs {wanted} wanted, got {tuple(pairs.shape)}")
    if weight is not None and weight.shape != z.shape[:2]:
        raise ValueError(f"weights {tuple(z.shape[:2])} wanted, got {tuple(weight.shape)}")


class _Distillation(torch.autograd.Function):
    """Twice block by block of the prototypes: the normalizers, then with them the slopes."""

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
        mass = pairs.sum(dim=2).view(-1, 1)  # of each row's target, (n S, 1)
        length = torch.linalg.vector_norm(v, dim=1)
        inverse = 1 / (length * temperature)
        factor = g[:, 0] * inverse  # (K,): a logit over the temperature is z . v times it
        blocks = _blocks(rows, v)

        top = rows.new_full((len(rows), 1), -torch.inf)
        norm, matched = torch.zeros_like(top), torch.zeros_like(pairs)
        for block in blocks:
            logits = (rows @ v[block].T).mul_(factor[block])
            matched.baddbmm_(logits.view(count, views, -1), teacher[..., block].transpose(1, 2))
            new_top = torch.maximum(top, logits.amax(dim=1, keepdim=True))
            norm *= (top - new_top).exp()
            norm += logits.sub_(new_top).exp_().sum(dim=1, keepdim=True)
            top = new_top
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
            by_v[block].addcmul_(v[block], radial[:, None], value=-1)  # |v| changes nothing
        ctx.save_for_backward(by_rows.view_as(z), by_v, by_g)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        # In place: a copy would be as large as the prototypes. Autograd refuses a second backward.
        by_z, by_v, by_g = (x.mul_(grads[0]) for x in ctx.saved_tensors)
        return by_z, by_v, by_g, None, None, None, None, None


def _blocks(rows: Tensor, v: Tensor) -> list[slice]:
    limit = _LOGITS_BLOCK.get(rows.device.type, _LOGITS_BLOCK["cpu"])
    step = max(256, limit // max(1, len(rows)))
    return [slice(start, start + step) for start in range(0, len(v), step)]
