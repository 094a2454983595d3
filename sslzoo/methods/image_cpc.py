"""CPC for images: representation learning with contrastive predictive coding, versions 1 and 2.

Van den Oord, Li and Vinyals, 2018, https://arxiv.org/abs/1807.03748, section 3.3; Henaff et al.,
Data-Efficient Image Recognition with Contrastive Predictive Coding, ICML 2020,
https://arxiv.org/abs/1905.09272 (layer norm, more directions, augmentation of each patch) is a
config of this class. Neither paper has code by its authors. Reference code: loeweX/Greedy_InfoMax,
commit 22d17e4.

Deviations:
    1. Negatives are keyed draws of (seed, step, sample, direction, k) among the targets of the
       global batch; the code draws them from the process's generator among those of one GPU.
    2. The log softmax is exact; the code's is log(softmax + 1e-11), which is at least -25.3.
    3. `PixelContext` has a vertical stack alone, with a residual connection per layer; the code
       also has a horizontal stack, whose mask lets it see the same rows.
    4. Gray images have three equal channels; the code's have one.
    5. Weights have Kaiming's normal initialization and biases start at 0; the code's initial
       weights were not compared.
    6. Each direction of version 2 has its own context network and predictors; the paper's are
       unknown to us.
    7. Version 2 shifts, rotates, shears, recolors and grays each patch; the paper uses
       operations of AutoAugment and elastic deformation (reported).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.distributed import row_layout
from sslzoo.losses import cpc_info_nce
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, step_keys
from sslzoo.optim import Schedule, all_alike

Direction = Literal["down", "up", "right", "left"]


class ImageCPC(SSLMethod):
    """Predict the patches of the following rows from the rows of patches above.

    Args:
        backbone: with `forward_map` (B, C, H, W) -> (B, D, g, g), one location per patch
            (`backbones.PatchGrid`); its features are the mean over locations.
        contexts: one network per direction, (B, D, g, g) -> (B, D', g, g), whose output at a row
            depends on that row and those above (`heads.PixelContext`).
        directions: directions of prediction; ("down",) in version 1, all four in version 2
            (reported).
        num_steps: K, number of rows predicted; 5 in the code and the paper.
        skipped_rows: number of rows that overlap the context's own patches; 1 for patches that
            overlap by half.
        num_negatives: negatives per prediction; 16 in the code.
        optimizer: see `SSLMethod`; Adam with rate 2e-4 in the paper.
        schedule: see `SSLMethod`; none in the code.
        parameter_groups: see `SSLMethod`; nothing is decayed in the code.

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

    takes = ViewSpec(1, 1, kind="images")

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
                "backbone must have forward_map, map_features and grid (PatchGrid), got "
                f"{type(backbone).__name__} with map_features {width!r} and grid {grid!r}"
            )
        if len(contexts) != len(directions) or set(directions) - set(_TURNS) or not directions:
            raise ValueError(
                f"contexts must have one module per direction, directions of {sorted(_TURNS)}, got "
                f"{len(contexts)} contexts and directions {list(directions)}"
            )
        takes = [getattr(context, "in_features", width) for context in contexts]
        if set(takes) != {width}:
            raise ValueError(
                f"contexts must have in_features {width}, the backbone's channels, got {takes}"
            )
        if min(num_steps, num_negatives) < 1 or not 0 <= skipped_rows < grid - num_steps:
            raise ValueError(
                "num_steps and num_negatives must be at least 1 and num_steps + skipped_rows below "
                f"{grid}, the rows of the grid, got {num_steps}, {num_negatives} and {skipped_rows}"
            )
        self.contexts = nn.ModuleList(contexts)
        self.directions: list[str] = list(directions)
        self.predictors = nn.ModuleList(  # W_k for each direction
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
                positives = torch.arange(count, device=target.device)
                above = c[:, :-reach].flatten(1, 2)
                steps.append(cpc_info_nce(above, target, positives, negatives, rows=rows))
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


# Functions that turn a grid (B, rows, columns, D) so that prediction goes down the rows.
_TURNS = {"down": _down, "up": _up, "right": _right, "left": _left}
