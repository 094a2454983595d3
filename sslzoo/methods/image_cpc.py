"""CPC for images: representation learning with contrastive predictive coding, versions 1 and 2.

Van den Oord, Li and Vinyals, 2018, https://arxiv.org/abs/1807.03748, section 3.3; Henaff et al.,
Data-Efficient Image Recognition with Contrastive Predictive Coding, ICML 2020,
https://arxiv.org/abs/1905.09272 (layer norm, more directions, patches changed one by one: a
config). Neither has code by its authors. Reference code: loeweX/Greedy_InfoMax, commit 22d17e4.

Deviations:
    1. Negatives are a keyed function of (seed, step, sample, direction, k) among the targets of the
       global batch; the code's come from the process's generator, among those of one GPU.
    2. The exact log softmax; the code takes log(softmax + 1e-11), which is at least -25.3.
    3. Each direction of version 2 has a context network and predictors of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.distributed import row_layout
from sslzoo.losses import cpc_info_nce
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    step_keys,
)
from sslzoo.optim import Schedule, all_alike

Direction = Literal["down", "up", "right", "left"]


class ImageCPC(SSLMethod):
    """The rows of patches seen so far predict the patches of the rows that follow.

    Args:
        backbone: with `forward_map` (B, C, H, W) -> (B, D, g, g), a patch a place
            (`backbones.PatchGrid`); its features are the mean over places.
        contexts: a network a direction, (B, D, g, g) -> (B, D', g, g), whose output at a row
            depends on that row and those above (`heads.PixelContext`).
        directions: of prediction; ("down",) in version 1, all four in version 2 (reported).
        num_steps: K, rows predicted; 5 in the code and the paper.
        skipped_rows: rows that overlap the context's own patches: 1 where patches overlap by half.
        num_negatives: of each prediction; 16 in the code.
        optimizer: see `SSLMethod`; Adam at 2e-4.
        schedule: see `SSLMethod`; none.
        parameter_groups: see `SSLMethod`; nothing is decayed.

    Example:
        >>> from sslzoo.backbones import CPCResNet, PatchGrid
        >>> from sslzoo.heads import PixelContext
        >>> method = ImageCPC(
        ...     PatchGrid(CPCResNet((1, 1), (2, 3)), size=16, patch=4, stride=3),
        ...     [PixelContext(12, 1), PixelContext(12, 1)],
        ...     directions=["down", "left"],
        ...     num_steps=2,
        ...     num_negatives=3,
        ... )
        >>> batch = Batch([torch.rand(4, 3, 16, 16)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['down', 'left']
    """

    def __init__(
        self,
        backbone: nn.Module,
        contexts: list[nn.Module],
        directions: Sequence[Direction] = ("down",),
        num_steps: int = 5,
        skipped_rows: int = 1,
        num_negatives: int = 16,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        width, grid = (getattr(backbone, name, None) for name in ("map_features", "grid"))
        if not isinstance(width, int) or not isinstance(grid, int):
            raise ValueError(
                "ImageCPC wants a backbone with forward_map, map_features and grid (PatchGrid), "
                f"{type(backbone).__name__} has map_features {width!r} and grid {grid!r}"
            )
        if len(contexts) != len(directions) or set(directions) - set(_TURNS) or not directions:
            raise ValueError(
                f"a context a direction of {sorted(_TURNS)} wanted, got {len(contexts)} contexts "
                f"and directions {list(directions)}"
            )
        takes = [getattr(context, "in_features", width) for context in contexts]
        if set(takes) != {width}:
            raise ValueError(f"the backbone gives {width} features and the contexts take {takes}")
        if min(num_steps, num_negatives) < 1 or not 0 <= skipped_rows < grid - num_steps:
            raise ValueError(
                f"a grid of {grid} rows leaves {grid - 1} to predict: num_steps and num_negatives "
                f"of at least 1 and num_steps + skipped_rows below {grid} wanted, got {num_steps}, "
                f"{num_negatives} and {skipped_rows}"
            )
        self.contexts = nn.ModuleList(contexts)
        self.directions: list[str] = list(directions)
        self.predictors = nn.ModuleList(  # W_k, one for each k and direction
            nn.ModuleList(
                nn.Linear(width, int(getattr(context, "out_features", width)), bias=False)
                for _ in range(num_steps)
            )
            for context in contexts
        )
        self.skipped_rows, self.num_negatives = skipped_rows, num_negatives

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        backbone: Any = self.backbone
        z = backbone.forward_map(batch.views[0]).permute(0, 2, 3, 1)  # (B, g, g, D)
        keys = step_keys(self, batch)
        rows = row_layout(len(z))
        terms = {}
        parts: Any = zip(self.directions, self.contexts, self.predictors, strict=True)
        for name, context, predictors in parts:
            turned = _TURNS[name](z)
            c = context(turned.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, g, g, D')
            steps = []
            for k, predictor in enumerate(predictors, start=1):
                reach = k + self.skipped_rows
                target = predictor(turned[:, reach:]).flatten(1, 2)  # (B, P, D')
                count = target.shape[1]
                negatives = keys.fold(name, k).integers(
                    "negatives", rows.total * count, count, self.num_negatives
                )
                places = torch.arange(count, device=target.device)
                above = c[:, :-reach].flatten(1, 2)
                steps.append(cpc_info_nce(above, target, places, negatives, rows=rows))
            terms[name] = torch.stack(steps).mean()
        return terms


def _down(z: Tensor) -> Tensor:
    return z


def _up(z: Tensor) -> Tensor:
    return z.flip(1)


def _right(z: Tensor) -> Tensor:
    return z.transpose(1, 2)


def _left(z: Tensor) -> Tensor:
    return z.flip(2).transpose(1, 2)


# Turns a grid (B, rows, columns, D) so that its direction of prediction is down the rows.
_TURNS = {"down": _down, "up": _up, "right": _right, "left": _left}
