"""Gram anchoring: keeps the similarities between patches those of an earlier teacher.

Simeoni et al., DINOv3, 2025, https://arxiv.org/abs/2508.10104, section 4. Written from the formula;
the reference code, facebookresearch/dinov3 at 6876159, has a license of its own.

Deviations:
    ranks: with `level="batch"` the Gram matrix is that of the global batch; the reference code's is
        that of each GPU's own samples.
    negatives: "remove_teacher" has no effect on the student, as in the reference code.

Shapes: n local images, P patches of each, D width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.checks import check_choice, shapes
from sslzoo.distributed import gather_rows, row_layout, sum_over_ranks, world_size
from sslzoo.layers.precision import at_least_float32, l2_normalize, no_autocast
from sslzoo.losses.blockwise import attach_gradient, entries_per_block, needs_gradient

Level = Literal["image", "batch"]
Negatives = Literal["keep", "remove", "remove_teacher"]
# Similarities per block: few enough for a core's caches; large launches, and 64 MiB, on a GPU.
_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 24}


def gram(
    student: Tensor,
    teacher: Tensor,
    level: Level = "image",
    negatives: Negatives = "keep",
    normalize: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the patches' similarities, those of a patch with itself included.

    Args:
        student: (n, P, D) patch features.
        teacher: (n, P, D), a constant.
        level: "image": similarities within each image; "batch": between all patches of the batch.
        negatives: "keep"; "remove": negative similarities of both are set to 0; "remove_teacher":
            the teacher's alone.
        normalize: whether the features are normalized, so that similarities are cosines.
        mask: (n, P) bool, the patches that count; for `level="batch"`. None: all.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, an unknown option, or a mask with `level="image"`.
    """
    check_choice("level", level, get_args(Level))
    check_choice("negatives", negatives, get_args(Negatives))
    if student.dim() != 3 or student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must both be (n, P, D), got {shapes(student, teacher)}"
        )
    if mask is not None and (level == "image" or mask.shape != student.shape[:2]):
        raise ValueError(
            f"mask must be None for level='image' and {tuple(student.shape[:2])} for 'batch', got "
            f"{shapes(mask)} for {level!r}"
        )
    with no_autocast(student):
        x, t = (
            l2_normalize(f) if normalize else at_least_float32(f)
            for f in (student, teacher.detach().to(student.dtype))
        )
        if level == "image":
            count = row_layout(len(x)).total * x.shape[1] ** 2
            value = _squares(x, (x.detach(), t, t), negatives, None)
            return value * (world_size() / count)
        x, t = x.flatten(0, 1)[None], t.flatten(0, 1)[None]
        rows = row_layout(x.shape[1])
        keys = [gather_rows(f[0], rows)[None] for f in (x, t)]
        own = x.new_ones(x.shape[1]) if mask is None else mask.flatten().to(x.dtype)
        weights = own, gather_rows(own, rows)
        value = _squares(x, (keys[0], t, keys[1]), negatives, weights)
        return value * (world_size() / sum_over_ranks(own.sum()).square().clamp(min=1))


def _squares(
    x: Tensor,
    others: tuple[Tensor, Tensor, Tensor],
    negatives: str,
    weights: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Sum of squared differences of similarities, block by block, with its gradient.

    Similarities are symmetric, so the gradient by the keys is added to that by the own rows, where
    a rank has it whole.

    Args:
        x: (G, p, D) own rows of the student, in G groups.
        others: keys of the student (G, P, D), and own rows and keys of the teacher.
        negatives: see `gram`.
        weights: (p,) of the own rows, and (P,) of the keys; None: all are 1.
    """
    keys, t, t_keys = others
    own, value = x.detach(), x.new_zeros(())
    grad = torch.zeros_like(own) if needs_gradient(x) else None
    limit = entries_per_block(_BLOCK, x)
    num_groups, num_rows = max(1, limit // (x.shape[1] * keys.shape[1])), limit // keys.shape[1]
    for group in _slices(len(x), num_groups):
        for rows in _slices(x.shape[1], max(1, num_rows)):
            of_student = own[group, rows] @ keys[group].mT
            of_teacher = t[group, rows] @ t_keys[group].mT
            if negatives != "keep":
                of_teacher.clamp_(min=0)
            kept = of_student.clamp(min=0) if negatives == "remove" else of_student
            difference = kept - of_teacher
            slope = difference
            if weights is not None:
                slope = difference * weights[0][rows, None] * weights[1]
            value = value + (slope * difference).sum()
            if grad is not None:
                if negatives == "remove":
                    slope = slope * (of_student >= 0)
                grad[group, rows] = 4 * (slope @ keys[group])
    return attach_gradient(value, x, grad)


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def resize_tokens(
    tokens: Tensor,
    source: tuple[int, int],
    target: tuple[int, int],
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    antialias: bool = False,
) -> Tensor:
    """Resize patch features to another grid of patches.

    Args:
        tokens: (n, P, D), row by row of the source grid.
        source: its height and width in patches.
        target: height and width in patches of the result.
        interpolation: "bicubic" in DINOv3's recipes, or "bilinear".
        antialias: whether to widen the filter to shrink.

    Returns:
        (n, P', D), in float32 at least.
    """
    if source == target:
        return tokens
    table = at_least_float32(tokens).unflatten(1, source).permute(0, 3, 1, 2)
    moved = F.interpolate(
        table, target, mode=interpolation, align_corners=False, antialias=antialias
    )
    return moved.flatten(2).transpose(1, 2)
