"""Multi-block masks: I-JEPA's context block and target blocks.

Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture, CVPR 2023, https://arxiv.org/abs/2301.08243. Reference code: facebookresearch/ijepa
at 52c1ae9, src/masks/multiblock.py.

Deviations: see `methods.IJEPA`.

Shapes: B images of g x g patches, M target blocks of R patches, K context patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslzoo.random import Keys, run_uniform


@dataclass(frozen=True)
class MultiBlock:
    """Draw one context block and several target blocks per image.

    All images of a step share the sizes of the blocks, not their positions.

    Args:
        num_targets: M; 4 in the paper.
        target_scale: range of a target's fraction of the patches; (0.15, 0.2) in the paper.
        target_aspect: range of a target's aspect ratio, height over width; (0.75, 1.5) in the
            paper.
        context_scale: range of the context block's fraction of the patches, before targets are
            removed; (0.85, 1) in the paper.
        min_keep: the context has more than this number of patches; 10 in the code.
    """

    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_keep: int = 10

    def __post_init__(self) -> None:
        if self.num_targets < 1 or self.min_keep < 0:
            raise ValueError(
                "num_targets must be at least 1 and min_keep at least 0, got "
                f"{self.num_targets} and {self.min_keep}"
            )

    def draw(self, keys: Keys, grid: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Draw the positions of the context and target patches.

        Args:
            keys: (B,), for the positions of each image's blocks.
            grid: g.
            seed: seed of the run, for the sizes of the step's blocks.
            step: optimizer step, for the sizes of the step's blocks.

        Returns:
            Context (B, K) and targets (B, M, R), int64. They are disjoint, unless fewer than
            `min_keep` + 1 context patches would remain: then patches of the last target return to
            the context, and so on.
        """
        u_target, u_context = (
            run_uniform(name, seed, "multi-block", step) for name in ("target", "context")
        )
        h, w = block_size(grid, self.target_scale, self.target_aspect, u_target)
        height, width = block_size(grid, self.context_scale, (1.0, 1.0), u_context)
        top, left = _corners(keys.fold("targets"), grid, h, w, self.num_targets)
        position = torch.arange(grid, device=keys.key.device)
        corner = top * grid + left  # (B, M)
        targets = corner[..., None] + (position[:h, None] * grid + position[:w]).flatten()
        inside = _cover(position, top, left, h, w)  # (B, M, g * g)
        # Number of targets, from the last, to give up for a patch to be context.
        age = self.num_targets - torch.arange(self.num_targets, device=position.device)
        cost = (inside * age[:, None]).amax(1)
        block = _cover(
            position, *_corners(keys.fold("context"), grid, height, width, 1), height, width
        )
        cost = torch.where(block[:, 0], cost, self.num_targets + 1)
        # Every image has this many, wherever its blocks are.
        num_context = max(height * width - self.num_targets * h * w, self.min_keep + 1)
        order = cost.argsort(dim=1, stable=True)
        return order[:, : min(num_context, height * width)], targets


def block_size(
    grid: int, scale: tuple[float, float], aspect: tuple[float, float], u: float
) -> tuple[int, int]:
    """Height and width in patches, below the grid's; one draw u gives scale and aspect."""
    patches = int(grid**2 * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio))
    return max(1, min(height, grid - 1)), max(1, min(width, grid - 1))


def _corners(keys: Keys, grid: int, height: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of corners, never the last as in the code. (B, count) each."""
    top, left = (grid - size for size in (height, width))
    return keys.integers("top", top, count), keys.integers("left", left, count)


def _cover(position: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Which patches are in each block. (B, M) corners -> (B, M, g * g) bool."""
    rows = (position >= top[..., None]) & (position < top[..., None] + height)
    columns = (position >= left[..., None]) & (position < left[..., None] + width)
    return (rows[..., :, None] & columns[..., None, :]).flatten(2)
