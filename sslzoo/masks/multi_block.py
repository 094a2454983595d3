"""Multi-block masks: I-JEPA's context block and target blocks.

Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture, CVPR 2023, https://arxiv.org/abs/2301.08243. Reference code: facebookresearch/ijepa
at 52c1ae9, src/masks/multiblock.py.

Deviations: see `methods.IJEPA`.

Shapes: B images of h x w patches, M target blocks of R patches, E context blocks of K patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslzoo.checks import check_sides
from sslzoo.random import Keys, run_uniform


@dataclass(frozen=True)
class MultiBlock:
    """Draw context blocks, by default one, and several target blocks per image.

    All images of a step share the sizes of the blocks, not their positions.

    Args:
        num_targets: M; 4 in the paper.
        target_scale: range of a target's fraction of the patches; (0.15, 0.2) in the paper.
        target_aspect: range of a target's aspect ratio, height over width; (0.75, 1.5) in the
            paper.
        context_scale: range of the context block's fraction of the patches, before targets are
            removed; (0.85, 1) in the paper.
        min_keep: a context has more than this number of patches; 10 in the code.
        num_contexts: E; 1 in the paper, the code's num_enc_masks.
        allow_overlap: whether a context keeps the patches of the targets; False in the paper.

    Raises:
        ValueError: a number is out of range.
    """

    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_keep: int = 10
    num_contexts: int = 1
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        if self.num_contexts < 1:
            raise ValueError(f"num_contexts must be at least 1, got {self.num_contexts}")
        if self.num_targets < 1 or self.min_keep < 0:
            raise ValueError(
                "num_targets must be at least 1 and min_keep at least 0, got "
                f"{self.num_targets} and {self.min_keep}"
            )

    def draw(
        self, keys: Keys, grid: int | tuple[int, int], seed: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Draw the positions of the context and target patches.

        Args:
            keys: (B,), for the positions of each image's blocks.
            grid: patches per side, or (h, w).
            seed: seed of the run, for the sizes of the step's blocks.
            step: optimizer step, for the sizes of the step's blocks.

        Returns:
            Context (B, K), or (B, E, K) with several contexts, and targets (B, M, R), int64. They
            are disjoint (unless `allow_overlap`) where at least `min_keep` + 1 context patches
            remain; otherwise patches of the last target return to the context, and so on.
        """
        rows, columns = check_sides("grid", grid)
        u_target, u_context = (
            run_uniform(name, seed, "multi-block", step) for name in ("target", "context")
        )
        h, w = block_size(grid, self.target_scale, self.target_aspect, u_target)
        height, width = block_size(grid, self.context_scale, (1.0, 1.0), u_context)
        top, left = _corners(keys.fold("targets"), (rows, columns), h, w, self.num_targets)
        patch = torch.arange(rows * columns, device=keys.key.device)
        patch = patch.view(rows, columns)
        targets = (top * columns + left)[..., None] + patch[:h, :w].flatten()
        # Number of targets, from the last, to give up for a patch to be context.
        age = self.num_targets - torch.arange(self.num_targets, device=patch.device)
        inside = _cover(patch, top, left, h, w)  # (B, M, h * w)
        cost = (inside * age[:, None]).amax(1, keepdim=True)
        # Every context has this many, wherever its blocks are.
        num_context = max(height * width - self.num_targets * h * w, self.min_keep + 1)
        if self.allow_overlap:
            cost, num_context = torch.zeros_like(cost), height * width
        corners = _corners(keys.fold("context"), (rows, columns), height, width, self.num_contexts)
        block = _cover(patch, *corners, height, width)  # (B, E, h * w)
        cost = torch.where(block, cost, self.num_targets + 1)
        order = cost.argsort(dim=2, stable=True)
        context = order[..., : min(num_context, height * width)]
        return context if self.num_contexts > 1 else context[:, 0], targets


def block_size(
    grid: int | tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    u: float,
) -> tuple[int, int]:
    """Height and width in patches, below the grid's; one draw u gives scale and aspect."""
    rows, columns = check_sides("grid", grid)
    patches = int(rows * columns * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio))
    return max(1, min(height, rows - 1)), max(1, min(width, columns - 1))


def _corners(
    keys: Keys, grid: tuple[int, int], height: int, width: int, count: int
) -> tuple[Tensor, Tensor]:
    """Rows and columns of corners, never the last as in the code. (B, count) each."""
    top, left = grid[0] - height, grid[1] - width
    return keys.integers("top", top, count), keys.integers("left", left, count)


def _cover(patch: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Which patches (h, w) are in each block. (B, M) corners -> (B, M, h * w) bool."""
    row, column = patch // patch.shape[1], patch % patch.shape[1]
    top, left = top[..., None, None], left[..., None, None]
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return inside.flatten(2)
